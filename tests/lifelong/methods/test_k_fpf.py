from __future__ import annotations

import pytest
import torch

from commonweight.lifelong.methods.k_fpf import change, sensitive


def test_change_is_the_mean_distance():
    old, new = {"a": torch.zeros(2, 2), "b": torch.ones(3)}, {"a": torch.full((2, 2), -0.5), "b": torch.ones(3)}
    assert change(old, new) == {"a": pytest.approx(0.5), "b": 0.0}
    assert sensitive(change(old, new), 0.5) == {"a"}
    assert sensitive({"a": 1.0, "b": 2.0, "c": 3.0}, 0.67) == {"b", "c"}
