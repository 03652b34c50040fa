"""Losses of routers in a training run."""

import pytest
import torch

import commonweight as cw
from commonweight import CommonweightError
from commonweight.adapt import Data, adapt, adapt_together, open_host
from commonweight.adapt.penalties import penalty, routed
from tests.adapt import tiny
from tests.models import make

MOLA = {"method": "mola", "sites": "*.query|*.value"}
SMALL = {"rank": 2, "experts": (3, 4)}


def first(bert, balance, **more):
    """The loss of the first step, before any pool has moved."""
    seen = []
    how = {"batch_size": 8, "epochs": 1, "options": {**SMALL, "balance": balance}, **more}
    adapt(open_host(bert, dtype="float32"), "t", tiny.rows(16), **MOLA, **how, progress=seen.append)
    return seen[0].loss


def test_it_is_part_of_the_loss(bert):
    plain, more = first(bert, 0.0), first(bert, 0.5)
    assert 2 * 0.5 * 0.9 < more - plain < 2 * 0.5 * 4, "two layers, each 1 where experts have as much to do"
    assert first(bert, 0.5, gradient_checkpointing=True) == pytest.approx(more, rel=1e-5)
    assert first(bert, 0.5, batch_size=4, accumulate=2) == pytest.approx(more, rel=0.05)


def test_together_each_has_its_own(bert):
    host = open_host(bert, dtype="float32")
    data = {"a": Data(rows=tiny.rows(16)), "b": Data(rows=tiny.rows(8, 1))}
    got = adapt_together(host, data, method="mola", sites=MOLA["sites"], options={**SMALL, "balance": 0.1}, epochs=1)
    a, b = (got[n].tenant for n in "ab")
    ids = torch.tensor([[2, 5, 3], [2, 6, 3], [2, 7, 3], [2, 9, 3]])
    readers = torch.tensor([a.number, b.number, b.number, b.number])
    with host.listening() as heard, host.route(readers):
        host.model(ids)
    whole = penalty([a, b], readers, heard)
    torch.testing.assert_close(whole, heard.loss(a) / 4 + heard.loss(b) * 3 / 4)
    with host.listening() as heard, host.route("a"):
        host.model(ids[:1])
    torch.testing.assert_close(penalty([a, b], readers[:1], heard), heard.loss(a))


def test_the_routers_learn_from_it(bert):
    """Weighed heavily, it makes the experts' loads equal."""

    def load(weight):
        host = open_host(bert, dtype="float32")
        options = {"rank": 2, "experts": 4, "balance": weight}
        how = {"method": "molora", "options": options, "sites": "*.query", "epochs": 6, "batch_size": 8, "lr": 2e-2}
        t = adapt(host, "t", tiny.rows(24), **how).tenant
        ids = torch.randint(5, 40, (8, 9), generator=torch.Generator().manual_seed(0))
        with host.listening() as heard, host.route("t"):
            host.model(ids)
        from commonweight.methods.mixtures.losses import balance, largest

        return sum(float(balance(s, largest(1)).detach()) for s in heard.said(t).values())

    assert load(1.0) < load(0.0) - 0.02


def test_experts_of_the_model_are_refused():
    model, _ = make("moe")
    host = cw.Host(model)
    tenant = host.add("t", "molora", rank=2, experts=2, balance=0.1, sites="*experts*")
    with pytest.raises(CommonweightError, match=r"experts.*leave the experts out with sites"):
        routed(tenant)
    assert not routed(host.add("u", "molora", rank=2, experts=2, sites="*experts*"))
    assert routed(host.add("v", "molora", rank=2, experts=2, balance=0.1, sites="*.q_proj"))


def test_what_the_compiler_would_not_see(bert):
    with pytest.raises(CommonweightError, match="compile does not go together with routers that are listened to"):
        first(bert, 0.5, compile=True)
