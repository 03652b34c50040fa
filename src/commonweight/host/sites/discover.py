"""Every site of a model."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from ...core import CommonweightError, Site, fits
from ..names import named
from ..weights import packed_whole
from . import (
    aside,
    attention,
    block,
    conv,
    embedding,
    further,
    linear,
    norm,
    parameter,
    parts,
    positions,
    prefix,
    queried,
    state,
    trunk,
)
from .found import Found, Whole
from .physical import Physical
from .tied import input_table

KINDS = (  # the first that knows a module wins
    linear.find, attention.find, norm.find, conv.find, embedding.find, block.find, block.find_head, parameter.find,
)  # fmt: skip


def discover(
    model: nn.Module, fused: Mapping[str, int] | None = None
) -> tuple[dict[str, Physical], list[Site], list[Site]]:
    """(modules by name, every site, the default ones).

    Default: linear projections, convolutions, norms, parameters, outputs of the blocks, their attention and
    feed-forward parts, what stands ahead of their keys and values, what is read beside these, what goes by positions,
    states of state-space layers, the trunks that they make up, and queries to them; all but embeddings of a model that
    has no blocks; with experts and routers of a mixture.
    fused: {pattern: parts} splits a fused weight's rows evenly.
    Names are those of the plain model, whatever is wrapped around it or its layers; adapters of PEFT are no sites.
    """
    whole = _whole(model)
    names = whole.names
    modules: dict[str, Physical] = {}
    every: list[Site] = []
    default: list[Site] = []
    for name, module in names.items():
        mine = next((f for kind in KINDS if (f := kind(name, module, whole))), [])
        for found in [*mine, *(parts.find(name, whole) if name in whole.blocks else [])]:
            modules[found.site.name] = found.at
            sites = _split(found, fused or {})
            every += sites
            default += sites if found.default else []
    ahead = prefix.find(whole)
    table = input_table(model, modules)
    front = prefix.front(table, ahead, whole) or further.find(table, ahead, whole)
    front += positions.find(front, table, names.get(table or ""))
    beside = [*aside.find(ahead, modules), *state.find(whole)]
    for found in [*ahead, *beside, *front, *trunk.find(every, modules), *queried.find(every, modules, ahead)]:
        modules[found.site.name] = found.at
        every.append(found.site)
        default += [found.site] if found.default else []
    twice = _biases(modules)
    modules = {n: at for n, at in modules.items() if n not in twice}
    return modules, [s for s in every if s.name not in twice], [s for s in default if s.name not in twice]


def _whole(model: nn.Module) -> Whole:
    names = dict(named(model))
    inner = {id(m) for at in names.values() if packed_whole(at) for m in at.modules() if m is not at}
    names = {n: m for n, m in names.items() if id(m) not in inner}  # what a packed layer keeps beside its codes
    layers = blocks = block.blocks_of(names)
    if any(conv.shape(m) is not None for m in names.values()):
        blocks = dict.fromkeys([*layers, *block.blocks_of(names, conv.shape)])
    return Whole(model, names, tuple(layers), tuple(blocks))


def why_no_prompt(model: nn.Module, modules: Mapping[str, Physical]) -> str:
    """Why no prompt stands in front of a model's tokens, where none does."""
    whole = _whole(model)
    found = further.place(input_table(model, modules), prefix.find(whole), whole)
    return found if isinstance(found, str) else "its prompts were left out"


def _biases(modules: Mapping[str, Physical]) -> set[str]:
    """Parameters that are the bias of a site too: BERT's head keeps its layer's once more, beside it."""
    others = [at for at in modules.values() if at.kind != "parameter" and at.bias_slot is not None]
    biases = {id(b) for at in others if (b := at.module._parameters.get(at.bias_slot)) is not None}  # type: ignore[arg-type]
    alone = [(n, at) for n, at in modules.items() if at.kind == "parameter"]
    return {n for n, at in alone if id(at.module._parameters.get(at.slot)) in biases}


def _split(found: Found, fused: Mapping[str, int]) -> list[Site]:
    """The site, or its rows as sites of their own."""
    site = found.site
    parts = next((n for p, n in fused.items() if fits(site.name, p)), 1) if found.at.kind == "linear" else 1
    if site.out % parts:
        raise CommonweightError(f"{site.name}: {site.out} rows do not split into {parts} equal parts")
    if parts == 1:
        return [site]
    step = site.out // parts
    ranges = [(i * step, (i + 1) * step) for i in range(parts)]
    return [site._replace(name=f"{site.name}[{i}]", out=step, rows=r) for i, r in enumerate(ranges)]
