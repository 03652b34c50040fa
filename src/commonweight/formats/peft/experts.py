"""LoRA on the experts of a mixture: a layer for each (transformers 4), or one tensor of all (target_parameters)."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError, Site
from . import refusals
from .keys import PREFIX

_SINGLE = re.compile(r"(.+)\.experts\.(\d+)\.(\w+)\.lora_([AB])\.weight")
_WHOLE = re.compile(r"(.+\.experts)((?:\.base_layer)*)\.lora_([AB])\.weight")
_GATE, _UP, _DOWN = ("gate_proj", "w1"), ("up_proj", "w3"), ("down_proj", "w2")


class Low(NamedTuple):
    """s B A of one expert's weight. A (r, inp), B (out, r)."""

    A: Tensor
    B: Tensor
    scale: float


def part(
    tensors: Mapping[str, Tensor], sites: Mapping[str, Site], scale: Callable[[str, int], float],
    crossed: Callable[[str], bool] = lambda site: False,
) -> tuple[dict[str, Tensor], dict[str, Low]]:  # fmt: skip
    """(the other tensors, what each expert's site gets). sites: by the file's names; an expert's is ``..._proj[3]``.

    scale(name, rank): of PEFT's module or parameter. crossed(site): whether B A is of the parameter
    (E, inp, out). gate and up lie in one weight, one above the other: their A are
    stacked, their B are blocks. Raises: CommonweightError for what fits no expert.
    """
    stacks: dict[str, list[Site]] = {}
    for name, site in sites.items():
        if name.endswith("]") and ".experts." in name:
            stacks.setdefault(name.rpartition("[")[0], []).append(site)
    single: dict[tuple[str, int], dict[str, dict[str, Tensor]]] = {}
    whole: dict[tuple[str, str], dict[str, Tensor]] = {}
    rest = {}
    for key, value in tensors.items():
        inner = key.removeprefix(PREFIX)
        if stacks and value.dim() == 2 and (m := _SINGLE.fullmatch(inner)) and inner.split(".lora_")[0] not in sites:
            single.setdefault((m[1], int(m[2])), {}).setdefault(m[3], {})[m[4]] = value
        elif stacks and value.dim() == 2 and (m := _WHOLE.fullmatch(inner)):
            whole.setdefault((m[1], m[2]), {})[m[3]] = value
        else:
            rest[key] = value
    out: dict[str, Low] = {}
    for (parent, expert), given in single.items():
        _one(parent, expert, given, stacks, scale, out)
    for (parent, nested), pair in whole.items():
        _all(f"{parent}{nested}", parent, pair, stacks, scale, crossed, out)
    return rest, out


def _one(
    parent: str, expert: int, given: Mapping[str, Mapping[str, Tensor]], stacks: Mapping[str, list[Site]],
    scale: Callable[[str, int], float], out: dict[str, Low],
) -> None:  # fmt: skip
    """The projections of one expert that was a layer each."""
    root = _root(parent, stacks)
    found: dict[str, Low] = {}
    for name, pair in given.items():
        at = f"{parent}.experts.{expert}.{name}"
        A, B = _pair(at, pair)
        found[name] = Low(A, B, scale(at, len(A)))
    for name in found:
        if name not in (*_GATE, *_UP, *_DOWN):
            raise refusals.tensor(f"{PREFIX}{parent}.experts.{expert}.{name}", f"{root} has no such projection")
    gate, up, down = (next((found[n] for n in names if n in found), None) for names in (_GATE, _UP, _DOWN))
    if down is not None:
        site = _site(stacks, f"{root}.down_proj", expert)
        _fits(f"{parent}.experts.{expert}", down, site.out, site)
        out[site.name] = down
    if gate is None and up is None:
        return
    whole = f"{root}.gate_up_proj" in stacks
    site = _site(stacks, f"{root}.{'gate_up_proj' if whole else 'up_proj'}", expert)
    halves = [(gate, 0), (up, site.out // 2)] if whole else [(up, 0)]
    height = site.out // len(halves)
    first = next(low for low, _ in halves if low is not None)
    if whole and gate is not None and up is not None and gate.scale == up.scale and torch.equal(gate.A, up.A):
        for low in (gate, up):
            _fits(f"{parent}.experts.{expert}", low, height, site)
        out[site.name] = Low(gate.A, torch.cat([gate.B, up.B]), gate.scale)  # one of both, which was written apart
        return
    As, Bs = [], []
    for low, start in halves:
        if low is None:
            continue
        _fits(f"{parent}.experts.{expert}", low, height, site)
        B = low.B.new_zeros(site.out, low.B.shape[1])
        B[start : start + height] = low.B * (low.scale / first.scale if first.scale else 1.0)
        As, Bs = [*As, low.A], [*Bs, B]
    out[site.name] = Low(torch.cat(As), torch.cat(Bs, 1), first.scale)


def _all(
    at: str, root: str, pair: Mapping[str, Tensor], stacks: Mapping[str, list[Site]],
    scale: Callable[[str, int], float], crossed: Callable[[str], bool], out: dict[str, Low],
) -> None:  # fmt: skip
    """All experts of one tensor. A (E r, inp), expert after expert; B (out, r E), rank after rank."""
    A, B = _pair(at, pair)
    mine = [n for n in stacks if n.rpartition(".")[0] == root]
    turned = any(crossed(stacks[n][0].name) for n in mine)
    given = (A.shape[1], B.shape[0]) if turned else (B.shape[0], A.shape[1])
    fits = [n for n in mine if (stacks[n][0].out, stacks[n][0].inp) == given]
    if len(fits) != 1 or len(A) % len(stacks[fits[0]]) or not len(A):
        raise refusals.tensor(
            f"{PREFIX}{at}.lora_A.weight",
            f"{tuple(A.shape)} beside B {tuple(B.shape)} fits no tensor of experts here"
            + "".join(f"; {n} has {len(stacks[n])} of {(stacks[n][0].out, stacks[n][0].inp)}" for n in mine),
        )
    name = fits[0]
    experts = stacks[name]
    rank = len(A) // len(experts)
    s = scale(name, rank)
    for site, a, b in zip(experts, A.unflatten(0, (-1, rank)), B.unflatten(1, (rank, -1)).permute(2, 0, 1)):
        out[site.name] = (
            Low(b.T.contiguous(), a.T.contiguous(), s) if turned else Low(a.contiguous(), b.contiguous(), s)
        )


def _root(parent: str, stacks: Mapping[str, list[Site]]) -> str:
    """The module that holds the experts now: what was ``block_sparse_moe`` in transformers 4 may be ``mlp`` in 5."""
    roots = {n.rpartition(".")[0] for n in stacks}
    if f"{parent}.experts" in roots:
        return f"{parent}.experts"
    layer = parent.rpartition(".")[0]
    near = [r for r in roots if r.startswith(f"{layer}.") and r.count(".") == parent.count(".") + 1]
    if len(near) != 1:
        raise refusals.tensor(f"{PREFIX}{parent}.experts", "this base has no experts there; made for another model")
    return near[0]


def _site(stacks: Mapping[str, list[Site]], name: str, expert: int) -> Site:
    found = stacks.get(name, [])
    if expert >= len(found):
        raise CommonweightError(
            f"adapter_model.safetensors: expert {expert} of {name}: this base has {len(found)}; made for another model"
        )
    return found[expert]


def _pair(at: str, pair: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
    for f in "AB":
        if f not in pair:
            raise CommonweightError(f"adapter_model.safetensors: {PREFIX}{at} has no lora_{f}.weight")
    A, B = pair["A"], pair["B"]
    if len(A) != B.shape[1] or not len(A):
        raise refusals.tensor(f"{PREFIX}{at}.lora_A.weight", f"{tuple(A.shape)}, its B is {tuple(B.shape)}")
    return A, B


def _fits(at: str, low: Low, height: int, site: Site) -> None:
    if (low.B.shape[0], low.A.shape[1]) != (height, site.inp):
        raise refusals.tensor(
            f"{PREFIX}{at}",
            f"adapts a weight of {(low.B.shape[0], low.A.shape[1])}, the base wants {(height, site.inp)}",
        )
