"""Orders of rows: by (seed, epoch) alone, of like length, in shares that a temperature says."""

from collections import Counter

import pytest

from commonweight.adapt.sampler import Mixed, shares


def test_one_set_is_shown_once():
    lengths = [i % 7 for i in range(50)]
    one = Mixed([lengths], 4, 3)
    first = list(one)
    assert sorted(first) == list(range(50)) and list(one) == first
    one.epoch = 1
    assert list(one) != first
    assert list(Mixed([lengths], 4, 4)) != first
    spread = [max(c) - min(c) for c in ([lengths[i] for i in first[a : a + 4]] for a in range(0, 48, 4))]
    assert sum(spread) / len(spread) < 2, "rows of like length share a batch"


def test_at_temperature_one_every_row_is_shown_once():
    mixed = Mixed([[3] * 30, [4] * 10, [5]], 8, 0)
    assert sorted(mixed) == list(range(41)) and mixed.quotas == [30, 10, 1]


def test_a_large_temperature_shows_all_sets_alike():
    mixed = Mixed([[3] * 80, [4] * 10], 8, 0, temperature=1e9)
    assert mixed.quotas == [45, 45] and len(mixed) == len(list(mixed)) == 90
    seen = Counter(mixed)
    assert max(seen[i] for i in range(80)) == 1, "drawn without replacement"
    assert {seen[80 + i] for i in range(10)} == {4, 5}, "whole rounds, and a part of one"


@pytest.mark.parametrize(("temperature", "wanted"), [(1, [64, 16]), (2, [53, 27]), (1e9, [40, 40])])
def test_shares_follow_the_power_law(temperature, wanted):
    assert shares([64, 16], 80, temperature) == wanted  # 80 * 64**(1/2) / (64**(1/2) + 16**(1/2)) = 53.3


def test_shares_sum_up_and_leave_nobody_out():
    assert shares([10_000, 1], 100, 1) == [99, 1]
    assert sum(shares([7, 7, 7], 10, 1)) == 10


def test_apart_no_batch_mixes_sets():
    mixed = Mixed([[3] * 21, [4] * 10], 8, 0, apart=True)
    order = list(mixed)
    assert len(order) == 32 and mixed.quotas == [24, 8]
    kinds = [{i < 21 for i in order[a : a + 8]} for a in range(0, 32, 8)]
    assert all(len(k) == 1 for k in kinds) and kinds.count({True}) == 3
