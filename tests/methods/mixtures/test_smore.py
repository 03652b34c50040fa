"""S'MoRE against its formula, token by token and node by node, and its loss written out."""

import math

import pytest
import torch

import commonweight as cw
from commonweight import CommonweightError
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 2, "experts": (3,), "active": (2,), "keys": 8}
VARIANTS = [{"experts": (3, 3), "active": (2, 2), "act": "relu"}]
SOFT = {**SMALL, "active": (3,)}


def site(**options):
    model, batch = make("qwen")
    host, seen = cw.Host(model, sites="*.q_proj"), {}
    tenant = stir(host.add("t", "smore", **options), std=0.5)
    name = host.sites[0].name
    layer = model.get_submodule(name)
    layer.register_forward_hook(lambda m, args, y: seen.update(x=args[0].detach(), y=y.detach()))
    with torch.no_grad(), host.route("t"):
        model(**batch)
    base = torch.nn.functional.linear(seen["x"], layer.get_parameter("weight"), layer.get_parameter("bias"))
    pools = {k.rpartition(".")[2]: v.detach() for k, v in tenant.pools.items() if k.startswith(f"{name}.")}
    for k in [k for k in pools if k[0] != "K"]:  # the last column is a bias
        whole = pools[k]
        pools[k], pools[k[0].lower() + k[1:]] = whole[..., :-1], whole[..., -1]
    return pools, seen["x"], seen["y"] - base


def tree(p, x, state, active, act, j=0):
    """z of a node at layer j - 1 whose router state is given, by recursion over its children."""
    hidden = torch.clamp(p[f"M{j}"] @ state + p[f"m{j}"], min=0)
    logits = p[f"K{j}"] @ (p[f"N{j}"] @ hidden + p[f"n{j}"])
    best = sorted(range(len(logits)), key=lambda i: -float(logits[i]))[: active[j]]
    total = sum(math.exp(float(logits[i])) for i in best)
    z = 0.0
    for i in best:
        r = p[f"B{j}"].shape[-1]
        low = p[f"A{j}"][i * r : (i + 1) * r] @ x + p[f"a{j}"][i * r : (i + 1) * r]
        u = p[f"B{j}"][i] @ low + p[f"b{j}"][i]
        if j + 1 < len(active):
            below = tree(p, x, torch.cat([state, p[f"K{j}"][i]]), active, act, j + 1)
            u = u + p[f"W{j}"] @ below + p[f"w{j}"]
        z = z + math.exp(float(logits[i])) / total * act(u)
    return z


@pytest.mark.parametrize(("experts", "active"), [((4,), (2,)), ((3, 4), (2, 2)), ((2, 3, 2), (2, 1, 2))])
def test_formula(experts, active):
    p, x, got = site(rank=2, experts=experts, active=active, keys=3)
    want = torch.zeros_like(got)
    for row in range(x.shape[0]):
        for at in range(x.shape[1]):
            token = x[row, at]
            want[row, at] = p["W"] @ tree(p, token, p["D"] @ token + p["d"], active, torch.tanh) + p["w"]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
    assert want.abs().max() > 0.01


def test_loss():
    """s sum_i f_i P_i: f the choices of expert i over nodes above and tokens, P its mean share there."""
    from commonweight.methods.said import Said

    z = torch.randn(3, 3 + 2 * 2, generator=torch.Generator().manual_seed(0))
    config = cw.methods.get("smore").config(experts=(3, 2), active=(2, 1))
    loss = cw.methods.get("smore").router_loss(config)
    assert loss is not None
    got = loss({"a": Said(z, torch.tensor([1.0, 0.0, 1.0]))})
    want = 0.0
    for n, k, rows in ((3, 2, [z[t, :3] for t in (0, 2)]), (2, 1, [z[t, b : b + 2] for t in (0, 2) for b in (3, 5)])):
        for i in range(n):
            f = sum(int(i in row.topk(k).indices) for row in rows) / len(rows)
            want += 1e-2 * n * f * sum(float(row.softmax(-1)[i]) for row in rows) / len(rows)
    assert float(got) == pytest.approx(want, rel=1e-5)
    assert cw.methods.get("smore").router_loss(cw.methods.get("smore").config(balance=0.0)) is None


def test_count():
    """As the official class has it for two layers (s 3, 4 from the top; f 2, 2)."""
    d, o, r, g = 48, 32, 2, 3
    e1, e0 = 4 * r, 4 * r + 3 * r
    want = g * d + g + o * e0 + o
    want += 3 * (r * d + r + e0 * r + e0) + 4 * (r * d + r + e1 * r + e1) + e0 * e1 + e0
    want += (g + 1) * g + (g + 1) * g + 3 * g + (2 * g + 1) * g + (g + 1) * g + 4 * g
    plan = cw.plan("smore", [cw.Site("q", o, d)], rank=r, experts=(3, 4), active=(2, 2), keys=g)
    assert plan.count() == want


@pytest.mark.parametrize(("experts", "active"), [((), ()), ((4, 2), (2,)), ((2,), (3,)), ((2,), (0,))])
def test_numbers_that_do_not_go(experts, active):
    with pytest.raises(CommonweightError, match=r"SMoRE: .*active|SMoRE: experts"):
        cw.plan("smore", [cw.Site("q", 8, 8)], experts=experts, active=active)
