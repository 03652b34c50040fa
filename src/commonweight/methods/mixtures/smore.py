"""S'MoRE: low-rank residuals in layers; a token takes a tree of them, chosen from the top and added from the bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE
from ...bind.mixture import GATED, tell
from ...core import ZEROS, Base, Plan, Pool, Read, Site, Uniform, Use, config, kaiming, option, serial
from ..registry import method
from ..said import RouterLoss, Said
from .losses import mean

ACTS = {"tanh": torch.tanh, "relu": torch.relu, "identity": lambda x: x}


@config
class SMoRE:
    rank: int = option(16, "rank of each expert", ge=1)
    experts: tuple[int, ...] = option((4,), "experts of each layer of residuals, from the roots down")
    active: tuple[int, ...] = option(
        (2,), "of these, roots that a token takes, and children of each in the layers below"
    )
    keys: int = option(32, "width of what the router reads of a token, and of the experts' keys", ge=1)
    act: Literal["tanh", "relu", "identity"] = option("tanh", "the activation behind every expert")
    balance: float = option(1e-2, "weight of the load of experts in the loss, layer by layer", ge=0)

    def check(self) -> str | None:
        if not self.experts or len(self.experts) != len(self.active) or min(*self.experts, *self.active) < 1:
            return f"experts {self.experts} and active {self.active}: give one number, 1 or more, for each layer"
        if any(k > n for k, n in zip(self.active, self.experts)):
            return f"active {self.active} of experts {self.experts}: a token cannot take more than there are"
        return None


@serial
@dataclass(frozen=True)
class Tree:
    """y' = y + W z + w, z the sum over the tree of experts that a token takes: see `plan`.

    experts, active: from the roots, layer 0, down. Slots of layer j: A{j} (s r, d_in + 1), B{j} (s, e, r + 1), e the
    ranks of this layer and of all below; W{j} (e, that of the layer below + 1), but for the deepest; M{j} (g, g (1 + j)
    + 1), N{j} (g, g + 1), K{j} (s, g) of the router. Of all: D (g, d_in + 1), W (d_out, e + 1). The last column of
    each, but of K{j}, is a bias. Linear in: W. Cost: all experts of each layer for every token, and W{j} once a node.
    """

    experts: tuple[int, ...]
    active: tuple[int, ...]
    act: str = "tanh"
    precise: ClassVar[bool] = True  # gates are worked out in float32
    unmerged: ClassVar[str] = GATED

    def output(self, x: Tensor, y: Tensor, base: Base, **p: Tensor) -> Tensor:
        seen, act, last = x.float(), ACTS[self.act], len(self.experts) - 1
        chosen, z = self.chosen(seen, base, p), seen
        for j in reversed(range(len(self.experts))):
            share, at = chosen[j]  # (..., nodes above, children)
            low = affine(seen, p[f"A{j}"]).unflatten(-1, (self.experts[j], -1))
            u = torch.einsum("...sr,ser->...se", low, p[f"B{j}"][..., :-1]) + p[f"B{j}"][..., -1]
            index = at.flatten(-2)[..., None].expand(*at.shape[:-2], at.shape[-2] * at.shape[-1], u.shape[-1])
            u = u.gather(-2, index)
            u = act(u if j == last else u + affine(z, p[f"W{j}"]))
            z = (share[..., None] * u.unflatten(-2, at.shape[-2:])).sum(-2)
        return y + affine(z[..., 0, :], p["W"]).to(y.dtype)

    def chosen(self, x: Tensor, base: Base, p: Mapping[str, Tensor]) -> list[tuple[Tensor, Tensor]]:
        """By layer: each node's children's shares, which sum to 1, and numbers (..., nodes above, children)."""
        state, out, said = affine(x, p["D"])[..., None, :], [], []
        for j, k in enumerate(self.active):
            hidden = affine(state, p[f"M{j}"]).relu()
            logits = F.linear(affine(hidden, p[f"N{j}"]), p[f"K{j}"])
            top, at = logits.softmax(-1).topk(k, -1)
            out.append((top / top.sum(-1, keepdim=True), at))
            said.append(logits.flatten(-2))
            state = torch.cat([state[..., None, :].expand(*at.shape, -1), p[f"K{j}"][at]], -1).flatten(-3, -2)
        tell(base, torch.cat(said, -1))
        return out


def affine(x: Tensor, w: Tensor) -> Tensor:
    """A linear map whose last column is its bias."""
    return F.linear(x, w[:, :-1], w[:, -1])


def _routing(config: SMoRE) -> RouterLoss | None:
    return partial(_loss, config) if config.balance else None


def _loss(config: SMoRE, said: Mapping[str, Said]) -> Tensor:
    """balance s sum_i f_i P_i of each layer of each site, f the nodes that expert i has for each node above."""
    out = torch.zeros(())
    for logits, real in said.values():
        nodes, begin = 1, 0
        for s, k in zip(config.experts, config.active):
            z = logits[:, begin : begin + nodes * s].unflatten(-1, (nodes, s))
            taken = torch.zeros_like(z).scatter(-1, z.topk(k, -1).indices, 1.0)
            load = mean(taken.mean(1), real) * mean(z.softmax(-1).mean(1), real)
            out = out.to(load) + config.balance * s * load.sum()
            nodes, begin = nodes * k, begin + nodes * s
    return out


@method(
    "smore",
    SMoRE,
    paper="S'MoRE: Structural Mixture of Residual Experts for Parameter-Efficient LLM Fine-tuning, arXiv 2504.06426",
    formula="sum over sites of (g + s r) (d_in + 1) + s e (r + 1) + (e + 1) d_out + g (g + 1) 2 + s g, for one layer "
    "of s experts, e = s r",
    kinds=("linear",),
    named=("expert", "router"),
    routing=_routing,
    size=("rank", "keys"),
)
def plan(sites: Sequence[Site], config: SMoRE) -> Plan:
    """h = W x + W_out z_0 + w_out; z_j = sum_i g_i act(B_i (A_i x + a_i) + b_i + W_j z_i + w_j) over the k_j children
    i that a node has, z_i = the same of i's own children, none in the deepest layer.

    The router goes from the top down: g = the k largest of softmax(K_j M(s)), over their sum, M two linear maps with
    relu between, s = (D x + c, the keys of the nodes above). Shapes: as `Tree`; W_out and w_out zero at the start, the
    rest as linear layers', keys uniform. To the loss is added, for every layer, `balance` s sum_i f_i P_i. Linear in:
    W_out. Source: github.com/ZimpleX/SMoRE-LLM @3d29349, hier_moe/layer.py and moe_gates.py ("switch"), and the
    LLaMA-Factory example, whose constants these are. Differs: keys begin in (-1, 1), there in (0, 1), and
    the experts' biases as their weights, there at zero; padding counts for nothing; one rank for all layers; no scale,
    as there unless lora_alpha is set.
    """
    g, widths = config.keys, [0]
    for s in reversed(config.experts):
        widths.append(widths[-1] + s * config.rank)
    widths = widths[::-1]  # of layer j, and of that below it
    bind = Tree(config.experts, config.active, config.act)
    pools, uses = {}, []
    for s in sites:
        mine = {"D": Pool((g, s.inp + 1), kaiming(s.inp)), "W": Pool((s.out, widths[0] + 1), ZEROS)}
        for j, (n, e, below) in enumerate(zip(config.experts, widths, widths[1:])):
            read = g * (1 + j)
            mine |= {f"A{j}": Pool((n * config.rank, s.inp + 1), kaiming(s.inp))}
            mine |= {f"B{j}": Pool((n, e, config.rank + 1), kaiming(config.rank))}
            mine |= {f"M{j}": Pool((g, read + 1), kaiming(read)), f"N{j}": Pool((g, g + 1), kaiming(g))}
            mine[f"K{j}"] = Pool((n, g), Uniform(1.0))
            if below:
                mine[f"W{j}"] = Pool((e, below + 1), kaiming(below))
        pools |= {f"{s.name}.{k}": p for k, p in mine.items()}
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in mine}))
    return Plan(pools, tuple(uses))
