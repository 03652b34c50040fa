"""FedAvg with codecs of its own: the layer of `exchange.coding`, which test_coding has in full."""

import pytest
import torch

from commonweight.core import CommonweightError
from commonweight.exchange import simulate
from commonweight.exchange.methods.coded import Coded
from commonweight.exchange.registry import Coding
from tests.adapt import tiny
from tests.exchange import small


@pytest.mark.parametrize(("codec", "each"), [("int8", lambda n: n), ("int4", lambda n: -(-n // 2))])
def test_bytes(bert, codec, each):
    """int8: n and 2 for every 64 of a pool; int4: half of n."""
    p = small.prepared(bert, "coded", {"rank": 2, "codec": codec})
    want = sum(each(q.numel) + 2 * -(-q.numel // 64) for q in p.setting.pools.values())
    assert p.method.nbytes(p.setting, 0, 0) == (want, 4 * p.setting.count)
    assert p.setting.coding == Coding(codec, None, "clients")


@pytest.mark.parametrize("codec", ["onebit", "ordered", "int3"])
def test_a_codec_that_is_none(codec):
    with pytest.raises(CommonweightError, match=f"unknown codec of exchange '{codec}'"):
        Coded(codec=codec)


@pytest.mark.parametrize("feedback", [True, False])
def test_it_is_fedavg_with_the_codecs_of_the_run(bert, feedback):
    """To the bit."""
    how = {"clients": 3, "rounds": 3, "batch_size": 4, "lr": 1e-2}
    rows, run = tiny.rows(20), {"codec": "int4", "codec_down": "int8"}
    one = simulate(
        small.prepared_host(bert), rows, method="coded", **how,
        options={"rank": 2, "codec": "int4", "down": "int8", "feedback": feedback},
    )  # fmt: skip
    other = simulate(
        small.prepared_host(bert), rows, method="fedavg", options={"rank": 2}, **how, **run,
        codec_feedback="clients" if feedback else "none",
    )  # fmt: skip
    assert small.same(one.state.tensors, other.state.tensors)
    assert one.up // 1000 == other.up // 1000 and one.down // 1000 == other.down // 1000  # the names' lengths differ
    assert any(torch.is_tensor(v) for v in one.kept.of(0).values()) == feedback


def test_a_run_with_eight_bits_both_ways(bert):
    how = {"clients": 3, "rounds": 3, "batch_size": 4, "lr": 1e-2, "method": "coded"}
    coded, plain = (
        simulate(small.prepared_host(bert), tiny.rows(30), options={"rank": 2, "codec": "int8", "down": d}, **how)
        for d in ("int8", "float32")
    )
    assert coded.down < 0.45 * plain.down and coded.up == plain.up
    assert abs(coded.curve[-1]["train_loss"] - plain.curve[-1]["train_loss"]) < 0.02
