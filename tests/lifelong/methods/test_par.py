from __future__ import annotations

import numpy as np
import pytest
import torch

from commonweight.lifelong.methods.par import distance


def test_the_distance_is_that_of_the_official_code():
    """Sum over classes of the mean log ratio of distances, floored at 0; min(1 - exp(-2 S), S); 0 counts as 1."""
    g = np.random.default_rng(0)
    f, y = g.normal(size=(20, 4)), np.arange(20) % 2
    f[y == 1] += 2
    own, other = np.stack([f[y == c].mean(0) for c in (0, 1)]), g.normal(size=(3, 4)) + 1
    S = 0.0
    for c in (0, 1):
        logs = [
            np.log(min(np.linalg.norm(x - m) for m in other) / np.linalg.norm(x - own[c])) for x in f[y == c]
        ]  # fmt: skip
        S += max(0.0, float(np.mean(logs)))
    have = distance(*(torch.tensor(v) for v in (f, y, own, other)))
    assert have == pytest.approx(min(1 - np.exp(-2 * S), S), abs=1e-5)


def test_no_distance_at_all_counts_as_one():
    f = torch.tensor([[0.0, 1.0], [0.0, -1.0]])
    assert distance(f, torch.zeros(2).long(), torch.zeros(1, 2), torch.zeros(1, 2)) == 1.0
