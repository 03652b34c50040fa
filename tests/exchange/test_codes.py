"""Tensors as bytes: bounds, choices and what is refused, written out."""

import itertools

import pytest
import torch

from commonweight.exchange.codes import LEVELS, decode, encode, get, head, longest, most, read, take, write, wrong
from commonweight.exchange.lgreco import choose
from commonweight.exchange.message import Refused

CODECS = ("int8", "int4", "bfloat16", "compeft:density=0.1", "l-greco")


def values(seed=0, sizes=((3, 5), (70,), (1,), (8, 40))):
    g = torch.Generator().manual_seed(seed)
    return {f"p{i}": torch.randn(s, generator=g) * (i + 1) for i, s in enumerate(sizes)}


def shapes(given):
    return {n: tuple(v.shape) for n, v in given.items()}


@pytest.mark.parametrize("codec", CODECS)
def test_two_messages_one_behind_the_other(codec):
    one, other = values(), values(1)
    stored = torch.cat([write(codec, one), write(codec, other)])
    first, rest = take(codec, shapes(one), stored)
    second, none = take(codec, shapes(other), rest)
    assert len(none) == 0 and len(stored) <= 2 * most(codec, shapes(one))
    for got, want in ((first, read(codec, shapes(one), write(codec, one))), (second, None)):
        assert got.keys() == one.keys()
        assert want is None or all(torch.equal(got[n], want[n]) for n in got)
    assert len(write(codec, {})) == 0 and read(codec, {}, write(codec, {})) == {}


@pytest.mark.parametrize("codec", [*LEVELS, "bfloat16", "compeft:density=1.0"])
@pytest.mark.parametrize("n", [1, 7, 64, 65, 1000])
def test_no_coding_is_longer_than_its_bound(codec, n):
    for value in (torch.randn(n), torch.zeros(n), torch.ones(n), torch.eye(1, n)[0]):
        stored = encode(get(codec), value)
        assert len(stored) <= longest(codec, n)
        assert decode(codec, stored, (n,)).shape == (n,)


@pytest.mark.parametrize("codec", CODECS)
def test_bytes_that_nobody_wrote(codec):
    given = values()
    good = write(codec, given)
    for bad in (good[:-1], good[:3], torch.cat([good, good[:1]])):
        with pytest.raises(Refused, match="wrong shape"):
            read(codec, shapes(given), bad)
    if codec in ("int8", "bfloat16"):
        with pytest.raises(Refused, match="not finite"):
            read(codec, shapes(given), torch.full_like(good, 255))
    if codec == "l-greco":
        other = good.clone()
        other[head(codec, len(given)) - 1] = 100
        with pytest.raises(Refused, match="names codec 100 of 6"):
            read(codec, shapes(given), other)


@pytest.mark.parametrize(
    ("codec", "why"),
    [
        ("onebit", "unknown codec of exchange 'onebit'"), ("int3", "did you mean 'int"),
        ("compeft:density=2", "density"), ("int8:bits=3", "bits"),
    ],
)  # fmt: skip
def test_a_codec_that_is_none(codec, why):
    assert why in (wrong(codec) or "")
    assert all(wrong(c) is None for c in CODECS)


@pytest.mark.parametrize("seed", range(6))
def test_the_choice_is_that_of_brute_force(seed):
    """All choices of 4 pools and 4 codecs, errors on the grid."""
    g = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 100, (4, 4), generator=g).tolist()
    errors = torch.randint(0, 600, (4, 4), generator=g).double().tolist()
    most = 1000.0
    every = [
        (sum(sizes[i][c] for i, c in enumerate(cs)), cs)
        for cs in itertools.product(range(4), repeat=4) if sum(errors[i][c] for i, c in enumerate(cs)) <= most
    ]  # fmt: skip
    got = choose(sizes, errors, most)
    if not every:
        assert got is None
        return
    assert got is not None and sum(errors[i][c] for i, c in enumerate(got)) <= most
    assert sum(sizes[i][c] for i, c in enumerate(got)) == min(every)[0]
    assert choose(sizes, [[5.0]] * 4, 1.0) is None


def test_of_one_error_it_takes_fewer_bytes_than_int4():
    """Tensors of very different size: the small ones are hardly sent."""
    change = {n: v * (1.0 if i % 2 else 1e-3) for i, (n, v) in enumerate(values(0, ((64, 8),) * 6).items())}
    mine, theirs = write("l-greco", change), write("int4", change)
    assert len(mine) < 0.8 * len(theirs)
    errors = [
        sum(float((v - change[n]).square().sum()) for n, v in read(c, shapes(change), s).items())
        for c, s in (("l-greco", mine), ("int4", theirs))
    ]
    assert errors[0] <= 1.02 * errors[1]
