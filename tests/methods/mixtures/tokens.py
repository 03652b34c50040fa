"""Mixtures written out token by token, expert by expert, and what a site of a tenant answers."""

import torch
from torch import Tensor

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make


def site(method: str, before=None, **options) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """(a stirred tenant's pools at the first query, its input, what it adds to the frozen output). before: of the
    tenant and that site, what is done to them first."""
    model, batch = make("qwen")
    host, seen = cw.Host(model, sites="*.q_proj"), {}
    tenant = stir(host.add("t", method, **options))
    name = host.sites[0].name
    layer = model.get_submodule(name)
    if before is not None:
        before(tenant, name)
    layer.register_forward_hook(lambda m, args, y: seen.update(x=args[0].detach(), y=y.detach()))
    with torch.no_grad(), host.route("t"):
        model(**batch)
    base = torch.nn.functional.linear(seen["x"], layer.get_parameter("weight"), layer.get_parameter("bias"))
    return {k: tenant.pools[f"{name}.{k}"].detach() for k in ("A", "B", "router")}, seen["x"], seen["y"] - base


def mixture(x: Tensor, gates, pools: dict[str, Tensor], rank: int) -> Tensor:
    """sum over experts of g_e B_e A_e x. gates: of one token's logits, a number for each expert."""
    A, B, R = pools["A"], pools["B"], pools["router"]
    out = torch.zeros(*x.shape[:-1], len(B))
    for row in range(x.shape[0]):
        for at in range(x.shape[1]):
            token = x[row, at]
            for e, g in enumerate(gates(R @ token)):
                first = 0 if len(A) == rank else e * rank
                out[row, at] += g * B[:, e * rank : (e + 1) * rank] @ (A[first : first + rank] @ token)
    return out


def largest(scores: Tensor, k: int) -> list[float]:
    """Each over the sum of the k largest, where it is one of them."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])[:k]
    total = sum(float(scores[i]) for i in order)
    return [float(scores[i]) / total if i in order else 0.0 for i in range(len(scores))]
