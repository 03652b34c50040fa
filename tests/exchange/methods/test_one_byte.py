"""Just One Byte: the byte, the step and the log, written out."""

import math

import pytest
import torch

from commonweight.core.directions import direction
from commonweight.exchange.methods.one_byte import (
    decode,
    decode_official,
    encode,
    encode_official,
    entry,
    read,
    seeds,
)
from commonweight.exchange.registry import Reply
from tests.exchange import small
from tests.exchange.methods.test_mezo import walk


def test_a_byte_is_a_byte():
    """All 256 codes but one come back; the error of a slope is at most e^(1/16) - 1, 3.1% in the median."""
    every = torch.arange(256, dtype=torch.uint8)
    back = encode(decode(every))
    assert back[back != every].tolist() == [0] and every[back != every].tolist() == [128]
    g = torch.randn(20_000, dtype=torch.float64).tolist()
    errors = sorted(abs(a - b) / abs(a) for a, b in zip(g, decode(encode(g))) if abs(a) > 4e-4)
    assert errors[-1] <= math.expm1(1 / 16) + 1e-6 and 0.028 < errors[len(errors) // 2] < 0.034
    assert decode(encode([0.0, 1e-9, -1e-9, 1e9, -1e9])) == pytest.approx(
        [0, 0, 0, math.exp(63 / 8), -math.exp(63 / 8)]
    )
    assert encode(g).dtype == torch.uint8 and encode(g).nbytes == len(g)


def test_the_published_form_needs_nine_bits():
    """255 powers and a sign: 511 codes with zero, which no byte holds."""
    every = [s * math.exp(k / 16) for k in range(-127, 128) for s in (-1, 1)]
    codes = encode_official([*every, 0.0])
    assert len(set(codes.tolist())) == 511 > 256 and codes.dtype == torch.int16
    assert decode_official(codes)[:-1] == pytest.approx(every, rel=1e-6) and decode_official(codes)[-1] == 0
    for g in (0.3, -1.7, 25.0):
        power = max(-127, min(127, round(16 * math.log(abs(g)))))
        assert decode_official(encode_official([g]))[0] == pytest.approx(math.copysign(math.exp(power / 16), g))
    assert encode_official([1e-9, -1e9]).tolist() == [1, -255]


@pytest.mark.parametrize("compat", ["", "official"])
def test_the_step(bert, compat):
    """theta - rate / n * sum of g z over all slopes; officially / sqrt(n). Rows do not weigh."""
    p = small.prepared(bert, "one-byte", {"adapter": "ia3", "directions": 2, "rate": 0.01, "compat": compat})
    start = small.start(p)
    given = {0: [1.5, -0.2], 2: [0.0, 3.0]}
    to, back = (encode_official, decode_official) if compat else (encode, decode)
    replies = [Reply(c, 1 + c, {"codes": to(g)}) for c, g in given.items()]
    state = p.method.gather(p.setting, p.method.begin(p.setting, start), 0, replies)
    for n, v in p.method.pools(p.setting, state).items():
        want = start[n].clone()
        for c, g in given.items():
            for s, value in zip(seeds(p.setting, 0, c), back(to(g))):
                want -= 0.01 / (2 if compat else 4) * value * direction(s, n, tuple(v.shape))
        assert (v - want).abs().max() <= 1e-6, n


def test_a_step_of_the_log(bert):
    p = small.prepared(bert, "one-byte", {"rank": 2, "directions": 3}, clients=11)
    made = [Reply(c, 1, {"codes": encode([c + 1.0, -1.0, 0.0])}) for c in (0, 3, 10)]
    log = torch.cat([entry(p.setting, made), entry(p.setting, made[1:2])])
    assert len(log) == (2 + 9) + (2 + 3) and log[:2].tolist() == [9, 4]
    first, second = read(p.setting, log)
    assert list(first) == [0, 3, 10] and second == {3: first[3]}
    assert first[10] == decode(encode([11.0, -1.0, 0.0]))


def test_bytes(bert):
    """One up; down a bit for each client and a byte for each answer, for each step that is new."""
    p = small.prepared(bert, "one-byte", {"adapter": "ia3"})
    state, _ = walk(p, small.start(p), 6)
    assert p.method.nbytes(p.setting, 6, 0) == (1, 4 + 6 * (1 + 3))
    told = p.method.tell(p.setting, state, 6, 0)
    assert told["log"].numel() == 1 + 3
    assert len(state.tensors["log"]) == 6 * 4
    q = small.prepared(bert, "one-byte", {"adapter": "ia3", "compat": "official"})
    assert q.method.nbytes(q.setting, 6, 0) == (2, 4 + 6 * (1 + 6))


def test_slopes_are_nobody_elses(bert):
    p = small.prepared(bert, "one-byte", {"rank": 2, "directions": 3})
    drawn = [s for k in range(3) for c in range(3) for s in seeds(p.setting, k, c)]
    assert len(set(drawn)) == 27
