"""Three LoRA tenants on a small model, what stands on them, and what a site of it adds."""

from typing import Any

import torch
from torch import Tensor

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SITE = "model.layers.1.mlp.down_proj"


def stand(method: str, names: Any = "abc", *, stirred: bool = True, seen: Any = None, **options: Any):
    """(host, tenant, x of the site, y of the frozen weight, what the tenant adds, [(A, B) of each below, scaled])."""
    model, batch = make("llama")
    host, seen = cw.Host(model, sites="*.up_proj|*.down_proj"), {} if seen is None else seen
    for i, n in enumerate("abc"):
        stir(host.add(n, "lora", rank=2, alpha=4.0, seed=i), i)
    if method == "phatgoose" and len(names) > 1:
        for i, n in enumerate(names):
            stir(host.add(f"{n}-gate", method, over=[n]), i)
        names = [f"{n}-gate" for n in names]
    t = host.add("t", method, over=list(names), **options)
    if stirred:
        stir(t, 5, 0.3)
    got = run(host, batch, seen)
    pairs = [(host[n].pools[f"{SITE}.A"].detach(), 2.0 * host[n].pools[f"{SITE}.B"].detach()) for n in "abc"]
    return host, t, *got, pairs


def run(host, batch, seen) -> tuple[Tensor, Tensor, Tensor]:
    layer = host.model.get_submodule(SITE)
    layer.register_forward_hook(lambda m, args, y: seen.update(x=args[0].detach(), y=y.detach()))
    up = host.model.get_submodule(SITE.replace("down", "up"))
    up.register_forward_hook(lambda m, args, y: seen.update(z=args[0].detach()))
    with torch.no_grad(), host.route("t"):
        host.model(**batch)
    y = seen["x"] @ layer.get_parameter("weight").detach().T
    return seen["x"], y, seen["y"] - y
