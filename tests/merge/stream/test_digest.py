"""Digests of tensors' bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from commonweight.merge.stream import digest


def of(*pieces, known=False):
    running = digest.Running()
    for x in pieces:
        words = x.numpy().view(np.int64)[: x.nbytes // digest.ROW * (digest.ROW // 8)].reshape(-1, digest.ROW // 8)
        running.add(x, (words.sum(1), words.sum(0)) if known else None)
    return running.value()


@pytest.mark.parametrize("n", [8, 1024, 3 * 1024, 3 * 1024 + 6])
def test_known_sums_and_a_cut_change_nothing(n):
    x = torch.randn(n, generator=torch.Generator().manual_seed(n))
    assert of(x) == of(x, known=True) == of(x[: n // 2048 * 1024], x[n // 2048 * 1024 :])


def test_any_change_shows():
    x = torch.randn(4 * 1024 + 10, generator=torch.Generator().manual_seed(0))
    others = [x.clone() for _ in range(4)]
    others[0][5] = -others[0][5]
    others[1][-1] += 1
    others[2][:1024], others[2][1024:2048] = x[1024:2048], x[:1024]
    others[3][7], others[3][8] = x[8], x[7]
    assert len({of(x), *map(of, others)}) == 5
    assert of(x[:1024], x[1024:2048]) != of(x[1024:2048], x[:1024])
