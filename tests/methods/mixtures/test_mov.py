"""MoV against its formula, token by token."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"experts": 3}


@pytest.mark.parametrize("name", ["self_attn.k_proj", "mlp.down_proj"])
def test_formula(name):
    model, batch = make("qwen")
    host, seen = cw.Host(model), {}
    tenant = stir(host.add("t", "mov", experts=3), std=0.5)
    at = f"model.layers.1.{name}"
    layer = model.get_submodule(at)
    layer.register_forward_pre_hook(lambda m, args: seen.update(x=args[0].detach()), prepend=True)
    layer.register_forward_hook(lambda m, args, y: seen.update(y=y.detach()))
    with torch.no_grad(), host.route("t"):
        model(**batch)
    l, R = (tenant.pools[f"{at}.{k}"].detach() for k in ("l", "router"))
    bias = layer.get_parameter("bias").detach() if "k_proj" in name else torch.zeros(32)
    for row in range(2):
        for t in range(seen["x"].shape[1]):
            x = seen["x"][row, t]
            state = layer.get_parameter("weight").detach() @ x + bias if "k_proj" in name else x
            weights = torch.exp(R @ state) / torch.exp(R @ state).sum()
            state = state * sum(w * v for w, v in zip(weights, l))
            want = state if "k_proj" in name else layer.get_parameter("weight").detach() @ state
            torch.testing.assert_close(seen["y"][row, t], want, rtol=1e-4, atol=1e-5)


def test_count():
    sites = [cw.Site("k", 16, 32, "linear", "key"), cw.Site("d", 32, 64, "linear", "down")]
    assert cw.plan("mov", sites, experts=5).count() == 2 * 5 * (16 + 64)
