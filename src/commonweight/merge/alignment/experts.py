"""Merging the experts inside one mixture-of-experts model, by how its router uses them.

Merge, Then Compress: Demystify Efficient SMoE with Hints from Its Routing Policy (arXiv 2310.01334): M-SMoE aligns,
groups and averages experts; MC-SMoE then writes each merged expert as low rank plus whole columns.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ...core import CommonweightError
from .align import PAIRS, Group, Place, match, permute

EXPERT = re.compile(r"^(.*\bexperts)\.(\d+)\.(.+)$")
FUSED = re.compile(r"^(.*\bexperts)\.([A-Za-z_]\w*)$")  # all of a layer's in one tensor, (experts, ...)


class Routing(NamedTuple):
    """Of one layer: usage (E,), the share of tokens' choices an expert got; likeness (E, E), cosines of its logits."""

    usage: Tensor
    likeness: Tensor


class Merged(NamedTuple):
    """state: the model with fewer experts, counted anew from 0; groups: layer -> (E,), an old expert's new number."""

    state: dict[str, Tensor]
    groups: dict[str, Tensor]

    def expanded(self) -> dict[str, Tensor]:
        """The model in its old layout, where the experts of a group are one tensor under several names: any program
        runs it, and what stores equal tensors once stores it small. Experts in one tensor are copied to full size."""
        out = {n: t for n, t in self.state.items() if not EXPERT.match(n)}
        for name, t in self.state.items():
            if (found := FUSED.match(name)) and found[1] in self.groups and t.dim() > 1:
                out[name] = t[self.groups[found[1]].to(t.device)]
            if found := EXPERT.match(name):
                layer, new, rest = found[1], int(found[2]), found[3]
                for old in (self.groups[layer] == new).nonzero().flatten().tolist():
                    out[f"{layer}.{old}.{rest}"] = t
        return out


@torch.no_grad()
def routing(model: nn.Module, batches: Iterable[Mapping[str, Tensor]], top_k: int | None = None) -> list[Routing]:
    """How each layer's router chooses, over the rows. model: answers with `router_logits` when asked for them, as
    transformers' mixtures do; top_k: experts a token (the config's, if not given).
    """
    k = top_k or getattr(getattr(model, "config", None), "num_experts_per_tok", None)
    if not k:
        raise CommonweightError("the model does not say how many experts a token gets; give top_k=")
    counts: list[Tensor] = []
    grams: list[Tensor] = []
    for batch in batches:
        inputs: dict[str, Any] = {n: t for n, t in batch.items() if n != "labels"}
        found = getattr(model(**inputs, output_router_logits=True), "router_logits", None)
        if not found:
            raise CommonweightError("the model gives no router_logits; it is not a mixture of experts")
        mask = batch["attention_mask"].bool().flatten() if "attention_mask" in batch else slice(None)
        for i, logits in enumerate(found):
            logits = logits.reshape(-1, logits.shape[-1]).double()[mask]
            chosen = torch.zeros_like(logits).scatter_(1, logits.topk(k, dim=1).indices, 1.0).sum(0)
            if i == len(counts):
                counts.append(torch.zeros_like(chosen))
                grams.append(torch.zeros(len(chosen), len(chosen), dtype=torch.float64))
            counts[i] += chosen
            grams[i] += logits.T @ logits
    if not counts:
        raise CommonweightError("no rows to see the routing of")
    return [Routing(c / c.sum(), _cosines(g)) for c, g in zip(counts, grams)]


def _cosines(gram: Tensor) -> Tensor:
    size = gram.diagonal().clamp(min=1e-30).sqrt()
    return gram / size[:, None] / size


def dominant(layers: Sequence[Routing], keep: float) -> list[Tensor]:
    """Each layer's dominant experts (sorted): the most used over all layers, `keep` of each layer in the mean, usage
    relative to the layer's largest, and at least one a layer."""
    share = torch.cat([r.usage / r.usage.max().clamp(min=1e-30) for r in layers])
    total = max(len(layers), round(keep * len(share)))
    first = torch.cat([(r.usage == r.usage.max()).cumsum(0).eq(1) & (r.usage == r.usage.max()) for r in layers])
    chosen = (share + 2.0 * first).sort(descending=True, stable=True).indices[:total]
    mask = torch.zeros(len(share), dtype=torch.bool)
    mask[chosen] = True
    return [m.nonzero().squeeze(1) for m in mask.split([len(r.usage) for r in layers])]


def grouped(of: Routing, leaders: Tensor) -> Tensor:
    """(E,): the number of the dominant expert whose router logits are most like each expert's; leaders stay."""
    out = of.likeness[:, leaders].argmax(1)
    out[leaders] = torch.arange(len(leaders))
    return out


def average(experts: Sequence[Mapping[str, Tensor]], usage: Sequence[float], align: bool = True) -> dict[str, Tensor]:
    """One expert of a group: the first is the dominant one, to whose inner units the others' are brought; weighted by
    usage. Experts nobody used weigh the same. Inner units are known by the usual names of layers (`align.PAIRS`) and
    of transformers' fused tensors, gate_up_proj (2 d, d_in) and down_proj (d_out, d); experts called otherwise are
    averaged as they are. Raises: CommonweightError for fused tensors that lie otherwise."""
    first, *others = experts
    group = _inner({k: tuple(t.shape) for k, t in first.items()}) if align else None
    if group is not None:
        others = [permute([group], match([group], first, x), x) for x in others]
    total = sum(usage)
    weights = [u / total for u in usage] if total > 0 else [1 / len(experts)] * len(experts)
    return {
        k: sum(w * x[k].float() for w, x in zip(weights, [first, *others], strict=True)).to(first[k].dtype)  # type: ignore[union-attr]
        for k in first
    }


_HALVES = {"gate_up_proj": 2, "up_proj": 1}  # fused tensors, and the layers that lie in them one below the other


def _inner(shapes: Mapping[str, tuple[int, ...]]) -> Group | None:
    for ups, down in PAIRS:
        if f"{down}.weight" in shapes and all(f"{u}.weight" in shapes for u in ups):
            written = [Place(f"{u}.{p}", 0) for u in ups for p in ("weight", "bias") if f"{u}.{p}" in shapes]
            return Group("inner", shapes[f"{ups[0]}.weight"][0], (*written, Place(f"{down}.weight", 1)))
    name = next((n for n in _HALVES if n in shapes and len(shapes.get("down_proj", ())) == 2), None)
    if name is None:
        return None
    parts, (out, units) = _HALVES[name], shapes["down_proj"]
    if shapes[name] != (parts * units, out):
        raise CommonweightError(
            f"experts.{name} is {shapes[name]} beside down_proj {(out, units)}, an expert; wanted "
            f"{(parts * units, out)}, else units cannot be told apart; align=False averages in stored order"
        )
    written = [Place(n, 0, i * units) for n in (name, f"{name}_bias") if n in shapes for i in range(parts)]
    return Group("inner", units, (*written, Place("down_proj", 1)))


def merge_experts(
    state: Mapping[str, Tensor], layers: Sequence[Routing], *, keep: float = 0.5, align: bool = True
) -> Merged:
    """M-SMoE: experts around the most used ones, by the router's habits, one average a group.

    state: names ``....experts.3.w1.weight``, or ``....experts.gate_up_proj`` with all experts of a layer in one tensor
    along its first dimension, as transformers' modules have them; the result has the same form. layers: routing() of
    its layers in their order; keep: the share of experts that stay. The router is as it was: `groups` says what its old
    numbers mean. Raises: CommonweightError when there are no such experts, other numbers of them than the routing says,
    or fused tensors whose units are not known.
    """
    if not 0 < keep <= 1:
        raise CommonweightError(f"keep is {keep}; wanted a share above 0, up to 1")
    found: dict[str, dict[int, dict[str, Tensor]]] = {}
    fused: set[str] = set()
    for name, t in state.items():
        if m := EXPERT.match(name):
            found.setdefault(m[1], {}).setdefault(int(m[2]), {})[m[3]] = t
        elif (m := FUSED.match(name)) and t.dim() > 1:
            fused.add(name)
            for e, part in enumerate(t):
                found.setdefault(m[1], {}).setdefault(e, {})[m[2]] = part
    names = sorted(found, key=lambda n: [int(x) if x.isdecimal() else x for x in re.split(r"(\d+)", n)])
    sizes = [len(r.usage) for r in layers]
    if not names or [len(found[n]) for n in names] != sizes:
        have = [len(found[n]) for n in names]
        raise CommonweightError(
            f"the model's layers have {have} experts, the routing {sizes}; they must be the same (experts are what is "
            "called ...experts.3.w1.weight, or ...experts.gate_up_proj with all of a layer in one tensor)"
        )
    for layer in names:
        for e, parts in found[layer].items():
            if parts.keys() != found[layer][0].keys():
                raise CommonweightError(f"{layer}: expert {e} has {sorted(parts)}, expert 0 {sorted(found[layer][0])}")
    out = {n: t for n, t in state.items() if not EXPERT.match(n) and n not in fused}
    groups = {}
    for layer, of, leaders in zip(names, layers, dominant(layers, keep), strict=True):
        groups[layer] = to = grouped(of, leaders)
        made = []
        for new, leader in enumerate(leaders.tolist()):
            rest = [e for e in (to == new).nonzero().flatten().tolist() if e != leader]
            usage = of.usage[[leader, *rest]].tolist()
            made.append(average([found[layer][e] for e in (leader, *rest)], usage, align))
        for k in made[0]:
            if f"{layer}.{k}" in fused:
                out[f"{layer}.{k}"] = torch.stack([one[k] for one in made])
            else:
                out.update({f"{layer}.{new}.{k}": one[k] for new, one in enumerate(made)})
    return Merged(out, groups)


class Compressed(NamedTuple):
    """W about u v + s on its `columns`: u (d_out, r), v (r, d_in), s (d_out, len(columns))."""

    u: Tensor
    v: Tensor
    s: Tensor
    columns: Tensor

    def weight(self) -> Tensor:
        out = self.u @ self.v
        out[:, self.columns] += self.s
        return out


def compress(weight: Tensor, rank: int, columns: int) -> Compressed:
    """MC-SMoE's second step for one matrix: the best rank-r part, and the rest of the columns in which it is largest.

    Differs: the paper prunes columns while it trains, by their sensitivity; here by length, without training.
    """
    u, s, vh = torch.linalg.svd(weight.double(), full_matrices=False)
    low = (u[:, :rank] * s[:rank]) @ vh[:rank]
    rest = weight.double() - low
    kept = rest.norm(dim=0).sort(descending=True, stable=True).indices[:columns].sort().values
    return Compressed((u[:, :rank] * s[:rank]).float(), vh[:rank].float(), rest[:, kept].float(), kept)
