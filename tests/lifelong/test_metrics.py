"""Figures of a stream against the published definitions, written out a second time."""

from __future__ import annotations

import numpy as np
import pytest

from commonweight.lifelong import metrics

A = [[0.9, 0.4, None], [0.7, 0.8, 0.5], [0.6, 0.75, 0.85]]
B = [0.2, 0.3, 0.25]


def test_transfers_are_those_of_gem():
    """arXiv 1706.08840, eqs. (2) to (4), whose rows are tasks learned."""
    R, b, T = np.array([[np.nan if v is None else v for v in row] for row in A]), np.array(B), 3
    assert metrics.average(A) == pytest.approx(R[T - 1].mean())
    assert metrics.backward(A) == pytest.approx(sum(R[T - 1, i] - R[i, i] for i in range(T - 1)) / (T - 1))
    assert metrics.forward(A, B) == pytest.approx(sum(R[i - 1, i] - b[i] for i in range(1, T)) / (T - 1))


def test_forgetting_is_that_of_riemannian_walk():
    """arXiv 1801.10112, eq. (3): f_j^k = max over l in {1..k-1} of a_{l,j}, minus a_{k,j}, for j <= l."""
    k, f = 3, []
    for j in range(1, k):
        seen = [A[m - 1][j - 1] for m in range(1, k) if j <= m]
        f.append(max(seen) - A[k - 1][j - 1])  # type: ignore
    assert metrics.forgetting(A) == pytest.approx(sum(f) / (k - 1))


def test_a_task_that_got_better_is_forgotten_less_than_nothing():
    assert metrics.forgetting([[0.5, None], [0.8, 0.9]]) == pytest.approx(-0.3)


def test_intransigence_is_what_learning_in_a_row_costs():
    """arXiv 1801.10112, eq. (6): I_k = a*_k - a_{k,k}."""
    alone = [0.95, 0.8, 0.9]
    assert metrics.learning(A, alone) == pytest.approx(np.mean([0.05, 0.0, 0.05]))


def test_where_less_is_better_the_signs_turn():
    loss = [[1.0, 3.0], [2.0, 0.5]]
    assert metrics.forgetting(loss, more=False) == pytest.approx(1.0)
    assert metrics.backward(loss, more=False) == pytest.approx(-1.0)
    assert metrics.forward(loss, [9.0, 4.0], more=False) == pytest.approx(1.0)


def test_incremental_is_the_mean_of_means():
    assert metrics.incremental(A) == pytest.approx(np.mean([0.9, 0.75, np.mean(A[2])]))


@pytest.mark.parametrize("scores", [[[0.5]], [[None, None], [None, 0.9]]])
def test_what_cannot_be_told_is_none(scores):
    assert metrics.forgetting(scores) is None and metrics.backward(scores) is None
    assert metrics.forward(scores, [0.1] * len(scores)) is None
