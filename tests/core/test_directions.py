"""Normal numbers of walks: their law, and that nothing but (seed, name, place) decides a bit."""

from statistics import NormalDist

import pytest
import torch

from commonweight.core import directions
from commonweight.core.directions import GRID, LEVELS, blocks, direction, levels, move_, moved_rows


def test_levels_are_those_of_the_normal_distribution():
    z = levels().double()
    assert torch.equal(z, -z.flip(0)) and bool((z.diff() > 0).all())
    assert float(z.square().mean()) == pytest.approx(1.0, abs=1e-6)
    assert float(z.pow(4).mean()) == pytest.approx(3.0, abs=5e-3)
    for i in (0, 1, 1000, 32767, 40000, 65535):
        assert float(z[i]) == pytest.approx(NormalDist().inv_cdf((i + 0.5) / LEVELS), rel=1e-4, abs=GRID)


def test_no_level_lies_where_another_library_would_round_it_otherwise():
    """The inverse is exact to about 1e-15; every level is a thousand times that and more from the middle of two."""
    half = [NormalDist().inv_cdf((i + 0.5) / LEVELS) for i in range(LEVELS // 2)]
    size = (2 * sum(z * z for z in half) / LEVELS) ** 0.5
    nearest = min(abs(z / size / GRID % 1.0 - 0.5) for z in half)
    assert nearest * GRID > 1e-12


def test_the_first_bits():
    """Fixed for ever: a log that was written once rebuilds its model."""
    assert (direction(7, "a.R", (6,)) / GRID).int().tolist() == [-620337, 280132, -159251, -2700074, 22241, -489216]
    assert not torch.equal(direction(7, "a.R", (50,)), direction(7, "b.R", (50,)))
    assert not torch.equal(direction(7, "a.R", (50,)), direction(8, "a.R", (50,)))


def test_blocks_and_threads_do_not_count(monkeypatch):
    whole = direction(3, "x", (1001,))
    monkeypatch.setattr(directions, "BLOCK", 64)
    assert torch.equal(direction(3, "x", (1001,)), whole)
    assert [at for at, _ in blocks(3, "x", 130)] == [0, 64, 128]
    was = torch.get_num_threads()
    try:
        torch.set_num_threads(3)
        assert torch.equal(direction(3, "x", (1001,)), whole)
    finally:
        torch.set_num_threads(was)


def test_they_are_normal_and_apart():
    a, b = direction(0, "a", (100_000,)).double(), direction(1, "a", (100_000,)).double()
    assert abs(float(a.mean())) < 0.015 and float(a.var()) == pytest.approx(1.0, abs=0.02)
    assert abs(float((a * b).mean())) < 0.015 and abs(float((a[1:] * a[:-1]).mean())) < 0.015
    assert float((a.abs() < 1).double().mean()) == pytest.approx(0.6827, abs=0.006)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_moves_are_made_in_place(dtype):
    value = torch.ones(3, 5, dtype=dtype)
    got = move_(value, "a", [(1, 0.5), (2, -2.0)])
    want = torch.ones(3, 5, dtype=dtype)
    for seed, scale in ((1, 0.5), (2, -2.0)):
        want = want + (direction(seed, "a", (3, 5)) * scale).to(dtype)
    assert got is value and torch.equal(value, want)


def test_a_view_is_refused():
    with pytest.raises(ValueError, match=r"a: \(5, 3\) is not contiguous"):
        move_(torch.ones(3, 5).T, "a", [(1, 1.0)])


@pytest.mark.parametrize("block", [8, 64, 1 << 16])
def test_rows_are_those_of_the_whole(monkeypatch, block):
    """Rows that lie in two parts of a sequence, too."""
    monkeypatch.setattr(directions, "BLOCK", block)
    value, moves = torch.randn(20, 7), [(1, 0.5), (2, -1.0)]
    for rows in ([0, 3, 4, 19], [9], list(range(20)), []):
        at = torch.tensor(rows, dtype=torch.long)
        assert torch.equal(moved_rows(value, "w", moves, at), move_(value.clone(), "w", moves)[at])
