"""Intervals of means: against printed tables and against what they promise."""

import random

import pytest

from commonweight.report import mean_interval, student

TABLE = {1: 12.7062, 2: 4.3027, 3: 3.1824, 4: 2.7764, 5: 2.5706, 9: 2.2622, 10: 2.2281, 30: 2.0423, 120: 1.9799}


@pytest.mark.parametrize("df", TABLE)
def test_students_t_is_that_of_the_printed_tables(df):
    assert student(df) == pytest.approx(TABLE[df], abs=6e-5)


@pytest.mark.parametrize(("share", "t"), [(0.5, 0.8165), (0.9, 2.9200), (0.99, 9.9248)])
def test_other_shares(share, t):
    assert student(2, share) == pytest.approx(t, abs=6e-5)


@pytest.mark.parametrize(("df", "share"), [(0, 0.95), (3, 0.0), (3, 1.0)])
def test_what_students_t_does_not_take(df, share):
    with pytest.raises(ValueError, match="wanted df >= 1"):
        student(df, share)


def test_the_interval_of_a_mean():
    mean, half = mean_interval([0.1, 0.2, 0.3])
    assert mean == pytest.approx(0.2) and half == pytest.approx(4.3027 * 0.1 / 3**0.5, rel=1e-4)
    assert mean_interval([0.5]) == (0.5, None)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.0)


def test_the_interval_holds_the_truth_as_often_as_it_says():
    draw = random.Random(0)
    held = 0
    for _ in range(2000):
        mean, half = mean_interval([draw.gauss(3.0, 2.0) for _ in range(3)])
        assert half is not None
        held += abs(mean - 3.0) <= half
    assert 0.93 < held / 2000 < 0.97
