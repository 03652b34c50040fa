"""The codecs by themselves: their law, their errors, their sizes, and bytes that they did not write."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import commonweight as cw
from commonweight.core import Rng
from commonweight.formats.codecs import CODECS, Compeft, get
from tests.drawn import drawn

EVERY = [*CODECS, "compeft:density=0.05", "compeft:density=1"]
numbers = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), max_size=150)


def normal(n: int, std: float = 1.0, name: str = "x") -> torch.Tensor:
    return Rng(0, name).normal((n,), std)


def taken(codec: str, value: torch.Tensor) -> torch.Tensor:
    """The value as the codec takes it: two numbers of it where there may be no more."""
    return torch.where(value > value[:1], value[:1], value.amin()) if codec == "onebit" and len(value) else value


@pytest.mark.parametrize("codec", EVERY)
@drawn(60)
@given(data=st.data(), values=numbers, moved=st.booleans())
def test_encoding_what_was_decoded_gives_the_same_bytes(codec, data, values, moved):
    value, first, c = taken(codec, torch.tensor(values)), None, get(codec)
    if moved:
        near = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=len(values),
                        max_size=len(values))  # fmt: skip
        first = torch.tensor(data.draw(near))
    stored = c.encode(value, first)
    back = c.decode(stored, value.shape, first)
    if back.isfinite().all():  # else saving refuses it
        again = c.encode(back, first)
        assert again.dtype == stored.dtype and again.equal(stored)


@pytest.mark.parametrize("codec", EVERY)
@pytest.mark.parametrize("size", range(-9, 3))
def test_the_law_at_changes_much_smaller_than_the_first_values(codec, size):
    c = get(codec)
    for seed in range(5):
        first = normal(777, 1.0, f"first {seed}")
        value = taken(codec, first + normal(777, 10.0**size, f"change {seed}"))
        stored = c.encode(value, first)
        assert c.encode(c.decode(stored, (777,), first), first).equal(stored)


@pytest.mark.parametrize(
    ("codec", "bits", "error"),
    [("bfloat16", 16, 0.002), ("int8", 8.25, 0.0065), ("int4", 4.25, 0.11), ("compeft:density=0.5", 1.5, 0.53),
     ("compeft", 1.5, 0.53), ("compeft:density=0.2", 0.95, 0.78), ("compeft:density=0.05", 0.34, 1.1)],
)  # fmt: skip
def test_bits_and_error_of_normal_numbers(codec, bits, error):
    c, value = get(codec), normal(64_000)
    stored = c.encode(value, None)
    off = ((c.decode(stored, value.shape, None) - value).norm() / value.norm()).item()
    assert 8 * stored.nbytes / len(value) == pytest.approx(bits, rel=0.02)
    assert 0.7 * error < off < error


@pytest.mark.parametrize("codec", ["int8", "int4", "compeft"])
def test_what_is_coded_is_the_change(codec):
    first, change = normal(6400, 1.0, "first"), normal(6400, 0.01)
    c = get(codec)
    off = (c.decode(c.encode(first + change, first), (6400,), first) - first - change).norm().item()
    alone = (c.decode(c.encode(change, None), (6400,), None) - change).norm().item()
    assert off == pytest.approx(alone, rel=0.02)
    assert c.decode(c.encode(first, first), (6400,), first).equal(first)


@pytest.mark.parametrize("codec", ["int8", "int4"])
def test_no_number_is_off_by_more_than_its_group_says(codec):
    value, top = normal(640) * torch.linspace(0.01, 100, 640), 127 if codec == "int8" else 7
    c = get(codec)
    off = (c.decode(c.encode(value, None), (640,), None) - value).abs().reshape(-1, 64).amax(1)
    largest = value.reshape(-1, 64).abs().amax(1)
    assert (off <= largest * (0.505 / top if codec == "int8" else 0.4 + 0.5 / top)).all()


def test_compeft_keeps_the_signs_of_the_largest_and_the_norm():
    value = normal(1000)
    back = Compeft(density=0.1).decode(Compeft(density=0.1).encode(value, None), (1000,), None)
    kept = value.abs().argsort(descending=True)[:100]
    assert back[kept].sign().equal(value[kept].sign()) and (back != 0).sum() == 100
    assert len(set(back.abs().tolist())) == 2
    assert back.norm().item() == pytest.approx(value.norm().item(), rel=1 / 256)


def test_compeft_is_near_the_entropy_of_a_ternary_vector():
    n = 50_000
    for p in (0.01, 0.05, 0.1, 0.2, 0.33, 0.5):
        entropy = n * (p - p * math.log2(p) - (1 - p) * math.log2(1 - p)) / 8
        assert entropy - 64 <= Compeft(density=p).encode(normal(n), None).nbytes <= 1.1 * entropy + 64
    for p in (0.8, 1.0):
        assert Compeft(density=p).encode(normal(n), None).nbytes <= n / 4 + 64  # a mask and signs


def test_ternary_changes_are_stored_as_they_are():
    first = normal(500, 1.0, "first")
    change = torch.zeros(500)
    change[::7], change[3::7] = 0.25, -0.25
    c = Compeft(density=0.5)
    assert c.decode(c.encode(first + change, first), (500,), first).equal(first + change)


@drawn(100)
@given(
    codec=st.sampled_from(["int8", "int4", "compeft", "onebit", "ordered"]),
    raw=st.binary(max_size=200),
    n=st.integers(0, 300),
)
def test_any_bytes_are_decoded_or_refused(codec, raw, n):
    stored = torch.tensor(list(raw), dtype=torch.uint8)
    try:
        assert get(codec).decode(stored, (n,), None).shape == (n,)
    except cw.CommonweightError:
        pass


@drawn(100)
@given(bit=st.integers(0, 8 * 60 - 1))
def test_a_flipped_bit_of_a_ternary_vector_is_decoded_or_refused(bit):
    c = Compeft(density=0.3)
    stored = c.encode(normal(200), None).clone()
    stored[bit // 8 % len(stored)] ^= 1 << bit % 8
    try:
        c.decode(stored, (200,), None)
    except cw.CommonweightError as e:
        assert "places" in str(e)


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("stored", [torch.zeros(3), torch.zeros(2, 2).byte(), torch.zeros(5).byte()])
def test_another_form_is_refused(codec, stored):
    with pytest.raises(cw.CommonweightError, match="wanted"):
        get(codec).decode(stored, (100,), None)


@pytest.mark.parametrize(
    ("codec", "message"),
    [("int5", "unknown codec 'int5'; did you mean 'int4'|'int8'"), ("zip", "unknown codec 'zip'; known: bfloat16"),
     ("compeft:density=2", "density is 2.0; it must be <= 1"), ("compeft:densty=0.2", "did you mean 'density'"),
     ("int8:density=0.2", "unknown option of Int8"), ("compeft:0.2", "wanted name=value"),
     (3, "codec is 3; wanted one of bfloat16, int8, int4, compeft, onebit, ordered"), (Compeft, "wanted one of")],
)  # fmt: skip
def test_what_is_no_codec(codec, message):
    with pytest.raises(cw.CommonweightError, match=message):
        get(codec)


def test_a_codec_is_itself():
    assert get(Compeft(density=0.1)) == get("compeft:density=0.1")


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 7), (16, 16), (3, 4, 5), (2, 0, 4)])
def test_two_values_of_each_matrix_take_a_bit_a_number_and_stay_exact(shape):
    value = torch.where(normal(math.prod(shape)) > 0.2, 0.3, -0.1).reshape(shape)
    count = math.prod(shape[:-2])
    if count > 1:
        value = value * torch.arange(1.0, count + 1)[:, None, None]
    c = get("onebit")
    stored = c.encode(value, None)
    assert stored.nbytes == 8 * count + -(-value.numel() // 8) and c.decode(stored, shape, None).equal(value)


def test_one_bit_takes_no_other_numbers():
    with pytest.raises(cw.CommonweightError, match=r"stores two values of a matrix; \(1000,\) has more"):
        get("onebit").encode(normal(1000), None)


@drawn(60)
@given(
    rows=st.integers(1, 3), k=st.integers(1, 40), high=st.sampled_from([1, 7, 300, 50_000_000]), seed=st.integers(0, 99)
)
def test_places_in_order_come_back_and_take_few_bytes(rows, k, high, seed):
    g = torch.Generator().manual_seed(seed)
    value = torch.randint(0, high, (rows, k), generator=g).cumsum(1).add(torch.arange(k)).int()
    c = get("ordered")
    stored = c.encode(value, None)
    back = c.decode(stored, (rows, k), None)
    assert stored.dtype == torch.uint8 and back.dtype == torch.int32 and back.equal(value)
    assert stored.nbytes <= 2 + rows * k * (2 + high.bit_length()) / 8 + 2


@pytest.mark.parametrize("value", [torch.tensor([3, 3]).int(), torch.tensor([-1, 4]).int(), torch.tensor([2, 1]).int(),
                                   torch.zeros(0).int(), torch.tensor([1.0, 2.0])])  # fmt: skip
def test_what_is_in_no_order_stays_as_it_is(value):
    c = get("ordered")
    assert c.encode(value, None) is value and c.decode(value, tuple(value.shape), None) is value


def test_one_place_in_two_hundred_takes_nine_bits():
    places = torch.randperm(200_000, generator=torch.Generator().manual_seed(0))[:1000].sort().values.int()
    assert get("ordered").encode(places, None).nbytes * 8 / 1000 < 9.3


@given(rows=st.integers(1, 4), k=st.integers(1, 40), spare=st.integers(0, 5000), seed=st.integers(0, 99))
def test_the_most_that_places_take(rows, k, spare, seed):
    g = torch.Generator().manual_seed(seed)
    at = [torch.randperm(k + spare, generator=g)[:k].sort().values.int() for _ in range(rows)]
    last = torch.arange(spare, spare + k, dtype=torch.int32)  # all behind one gap
    for value in (torch.stack(at), last.expand(rows, k).contiguous()):
        assert get("ordered").encode(value, None).nbytes <= get("ordered").most(rows, k, k + spare)
