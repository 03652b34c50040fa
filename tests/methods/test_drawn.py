"""Layers drawn by chance: by their weights, no set twice."""

import pytest
import torch

from commonweight.methods.drawn import credited, drawn, sets


def test_layers_are_drawn_by_their_weights():
    weights, many = torch.tensor([3.0, 1.0]), 400
    first = sum(drawn(1, f"x/{k}", weights, 1)[0] == 0 for k in range(many))
    assert first / many == pytest.approx(0.75, abs=0.06)


def test_sets_differ_and_end_where_there_are_no_more():
    found = sets(1, "x", torch.tensor([5.0, 1.0, 1.0]), 2, 3)
    assert {frozenset(s) for s in found} == {frozenset({0, 1}), frozenset({0, 2}), frozenset({1, 2})}
    assert len(sets(1, "x", torch.ones(2), 1, 3)) == 2 and len(sets(1, "x", torch.ones(2), 2, 3)) == 1


def test_credit_is_the_gradient_of_the_chance_times_what_is_above_the_mean():
    """One step by hand: rewards 1 and 0.5 (losses 0 and ln 2), mean 0.75."""
    p = torch.tensor([0.5, 0.2, 0.9], dtype=torch.float64)
    loss = {0: 0.0, 1: 0.6931471805599453}
    found = credited(torch.zeros(3, dtype=torch.float64), p, [[0, 1], [1, 2]], lambda s: loss[s[0]], 2.0)
    want = torch.tensor([2 * 0.25 * 0.25, 2 * (0.25 - 0.25) * 0.16, -2 * 0.25 * 0.09], dtype=torch.float64)
    torch.testing.assert_close(found, want)
