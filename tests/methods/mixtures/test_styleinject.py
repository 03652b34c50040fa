"""StyleInject against its formula: row by row without padding, style by style."""

import math

import pytest
import torch
from torch.nn import functional as F

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 2, "styles": 3}
MODEL = "bert"
NAME = "encoder.layer.0.intermediate.dense"
LENGTHS = 6, 3, 5, 4


def case():
    """(host, tenant, batch padded on the right)."""
    model, batch = make("bert")
    host = cw.Host(model, sites=f"{NAME}|*.output.dense")
    tenant = stir(host.add("t", "styleinject", rank=2, styles=3, alpha=6.0), std=0.5)
    mask = (torch.arange(batch["input_ids"].shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    return host, tenant, {**batch, "attention_mask": mask}


def given(host, route, batch):
    """(what the site is given, what it answers)."""
    seen = {}
    layer = host.model.get_submodule(NAME)
    handle = layer.register_forward_hook(lambda m, args, y: seen.update(x=args[0].detach(), y=y.detach()))
    with torch.no_grad(), host.route(route):
        host.model(**batch)
    handle.remove()
    return seen["x"], seen["y"]


def test_formula():
    host, tenant, batch = case()
    x, got = given(host, "t", batch)
    layer = host.model.get_submodule(NAME)
    A, B, R, c = (tenant.pools[f"{NAME}.{k}"].detach() for k in ("A", "B", "router", "bias"))
    for row, n in enumerate(LENGTHS):
        z = [float(R[i] @ (sum(x[row, :n]) / n) + c[i]) for i in range(3)]
        s = [math.exp(v) / sum(map(math.exp, z)) for v in z]
        lows = sum(s[i] * x[row, :n] @ A[2 * i : 2 * i + 2].T for i in range(3))
        want = F.linear(x[row, :n], layer.weight, layer.bias) + 3.0 * lows @ B.T
        torch.testing.assert_close(got[row, :n], want, rtol=1e-4, atol=1e-5)
    assert (got - F.linear(x, layer.weight, layer.bias)).abs().max() > 0.1


def test_padded_rows_of_a_mixed_batch_are_as_alone():
    host, _, batch = case()
    stir(host.add("u", "styleinject", rank=2, styles=3, alpha=6.0), 1, 0.5)
    _, mixed = given(host, ["t", "u", None, "u"], batch)
    for row, name in enumerate(["t", "u", None, "u"]):
        _, alone = given(host, name, {k: v[row : row + 1, : LENGTHS[row]] for k, v in batch.items()})
        torch.testing.assert_close(mixed[row, : LENGTHS[row]], alone[0], rtol=1e-4, atol=1e-5)


def test_count():
    plan = cw.plan("styleinject", [cw.Site("q", 48, 32)], rank=2, styles=3)
    assert plan.count() == 2 * (3 * 32 + 48) + 3 * (32 + 1)


def test_causal_blocks_are_refused():
    with pytest.raises(cw.CommonweightError, match=r"no token sees a later one.*would tell it what comes after it"):
        cw.Host(make("llama")[0]).add("t", "styleinject")
