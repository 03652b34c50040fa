"""LLaVA-MoLE: a whole feed-forward layer written out, and who asks which router."""

from typing import Any

import pytest
import torch
from torch.nn import functional as F

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 2, "experts": 3}
VARIANTS = [{"dense": True}]
SOFT = {**SMALL, "dense": True}


@pytest.mark.parametrize("dense", [False, True])
def test_a_layer_written_out(dense):
    """One expert in all three projections, of the router on what the layer is given."""
    model, batch = make("llama")
    host, seen = cw.Host(model), {}
    t = stir(host.add("t", "llava-mole", rank=2, experts=3, alpha=6.0, dense=dense))
    name = "model.layers.1.mlp"
    mlp = model.get_submodule(name)
    mlp.register_forward_hook(lambda m, args, y: seen.update(x=args[0].detach(), y=y.detach()))
    with torch.no_grad(), host.route("t"):
        model(**batch)
    p = {n.removeprefix(f"{name}."): v.detach() for n, v in t.pools.items() if n.startswith(name)}
    took = set()

    def project(layer, x, weights):
        y = mlp.get_submodule(layer).get_parameter("weight") @ x
        for e, w in enumerate(weights):
            y = y + 3.0 * w * p[f"{layer}.B"][:, 2 * e : 2 * e + 2] @ (p[f"{layer}.A"][2 * e : 2 * e + 2] @ x)
        return y

    for row in range(seen["x"].shape[0]):
        for at in range(seen["x"].shape[1]):
            x = seen["x"][row, at]
            z = p["gate_proj.router"] @ x + p["gate_proj.bias"]
            took.add(int(z.argmax()))
            weights = z.softmax(-1) if dense else [float(e == int(z.argmax())) for e in range(3)]
            h = F.silu(project("gate_proj", x, weights)) * project("up_proj", x, weights)
            torch.testing.assert_close(seen["y"][row, at], project("down_proj", h, weights), rtol=1e-4, atol=1e-5)
    assert len(took) > 1
    assert not host.base.current.thread.given_to, "what was lent is given back"


def test_the_load_reaches_the_router_and_the_task_does_not():
    model, batch = make("llama")
    host = cw.Host(model)
    t = stir(host.add("t", "llava-mole", rank=2, experts=3))
    with host.listening() as heard, host.route("t"):
        model(**batch).logits.square().sum().backward(retain_graph=True)
    grads = {n: p.grad for n, p in t.named_parameters()}
    assert all(g is None or not g.any() for n, g in grads.items() if "router" in n or n.endswith(".bias"))
    heard.loss(t).backward()
    assert all(p.grad is not None and p.grad.any() for n, p in t.named_parameters() if "router" in n)
    assert sorted(heard.said(t)) == [f"model.layers.{i}.mlp.gate_proj" for i in range(2)]


def test_who_asks_which_router():
    from commonweight.methods.mixtures.llava_mole import lenders

    names = [
        ("layer.0.q", "query"), ("layer.0.intermediate.dense", "up"), ("layer.0.output.dense", "down"),
        ("layer.1.moe.shared.gate", "gate"), ("layer.1.moe.shared.up", "up"), ("layer.1.mlp.gate", "gate"),
        ("layer.1.mlp.down", "down"), ("layer.1.moe.shared.down", "down"), ("layer.2.mlp.down", "down"),
    ]  # fmt: skip
    got = {n: s.name for n, s in lenders([cw.Site(n, 8, 8, "linear", r) for n, r in names]).items()}
    assert got == {
        "layer.0.intermediate.dense": "layer.0.intermediate.dense",
        "layer.0.output.dense": "layer.0.intermediate.dense",
        "layer.1.moe.shared.gate": "layer.1.moe.shared.gate", "layer.1.moe.shared.up": "layer.1.moe.shared.gate",
        "layer.1.moe.shared.down": "layer.1.moe.shared.gate", "layer.1.mlp.gate": "layer.1.mlp.gate",
        "layer.1.mlp.down": "layer.1.mlp.gate", "layer.2.mlp.down": "layer.2.mlp.down",
    }  # fmt: skip


def test_what_is_read_must_run_first():
    from commonweight.bind import Mixture
    from commonweight.host.seat import Seat

    A, B, R, x = torch.ones(2, 4), torch.ones(4, 2), torch.ones(2, 4), torch.ones(3, 4)
    base: Any = Seat(cw.Site("mlp.down", 4, 4), None, {})
    with pytest.raises(cw.CommonweightError, match=r"it reads what mlp\.up is given.*leave one of the two"):
        Mixture(source="mlp.up").output(x, x, base, A, B, R)


def test_count():
    sites = [cw.Site("0.q", 32, 32, "linear", "query"), cw.Site("0.up", 64, 32, "linear", "up")]
    sites += [cw.Site("0.down", 32, 64, "linear", "down")]
    got = cw.plan("llava-mole", sites, rank=2, experts=3).count()
    assert got == 2 * 64 + 2 * (3 * 2 * 96) + 3 * 33
