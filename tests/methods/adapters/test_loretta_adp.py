"""LoRETTA_adp against its formula, with the matrices of `loretta`'s test."""

import torch
from torch.nn import functional as F

import commonweight as cw
from tests.laws.subjects import stir
from tests.methods.low_rank.test_loretta import full
from tests.models import make

SMALL = {"size": 4, "train_rank": 3}
VARIANTS = [{"placement": "pfeiffer", "act": "gelu"}]
NAME = "model.layers.1.mlp.down_proj"


def test_formula():
    model, batch = make("llama")
    host = cw.Host(model, sites=NAME)
    tenant = stir(host.add("t", "loretta-adp", **SMALL))
    seen = []
    handle = model.get_submodule(NAME).register_forward_hook(lambda m, a, y: seen.append(y.detach()))
    with torch.no_grad():
        model(**batch)
        with host.route("t"):
            model(**batch)
    handle.remove()
    pools = {n.removeprefix(f"{NAME}."): p.detach() for n, p in tenant.pools.items()}
    d = seen[0].shape[-1]
    down = full([p for n, p in pools.items() if n.startswith("down.")], (d, 4))
    up = full([p for n, p in pools.items() if n.startswith("up.")], (4, d))
    y = seen[0]
    want = y + F.relu(y @ down + pools["down_bias"]) @ up + pools["up_bias"]
    torch.testing.assert_close(seen[1], want)


def test_count():
    plan = cw.plan("loretta-adp", [cw.Site("down", 768, 3072, "linear", "down")], size=8)
    assert plan.count() == 2 * 580 + 8 + 768
