"""Layers of Flux, SD3 and Wan in diffusers as the layers that kohya's scripts train, which have the rows of several.

The factors of those are stacked: A one below the other, B in blocks, so that the product is each layer's own on its
rows and nothing between them. sd-scripts writes its `split_qkv` so. Layouts: see `transformers`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...core import CommonweightError
from ..changes import Change
from . import transformers as theirs

Layers = tuple[str, ...]
_BLOCKS: dict[str, dict[tuple[str, str], Mapping[str, Layers]]] = {  # class -> (block of the file, of diffusers)
    "FluxTransformer2DModel": {
        ("double_blocks", "transformer_blocks"): theirs.DOUBLE,
        ("single_blocks", "single_transformer_blocks"): theirs.SINGLE,
    },
    "SD3Transformer2DModel": {("joint_blocks", "transformer_blocks"): theirs.JOINT},
    "WanTransformer3DModel": {("blocks", "blocks"): {k: (v,) for k, v in theirs.WAN.items()}},
}
_OUTER = {
    "FluxTransformer2DModel": {k: v for k, v in theirs.OUTER.items() if not re.match(r"[tyx]_embedder", k)},
    "SD3Transformer2DModel": {
        "context_embedder": "context_embedder",
        **{k: v for k, v in theirs.OUTER.items() if re.match(r"[tyx]_embedder|final_", k)},
    },
    "WanTransformer3DModel": theirs.WAN_OUTER,
}
KINDS = tuple(_BLOCKS)


def joined(changes: Mapping[str, Change], kind: str, shapes: Mapping[str, tuple[int, int]]) -> dict[str, Change]:
    """{module of the file, with underscores: change}. changes: in factors, by the names of diffusers' layers.

    kind: the model's class, of `KINDS`. shapes: (out, inp) of all layers of the base. The rank of a module is the sum
    of its layers' ranks; that of one where they share their A. Raises: CommonweightError for a layer that has no name
    in kohya's scripts, and for magnitudes of some layers of a module without those of the others.
    """
    by_name = {n.replace(".", "_"): n for n in shapes}
    out: dict[str, Change] = {}
    for name in changes:
        module, layers = _module(name, kind)
        if module in out:
            continue
        if lost := [n for n in layers if n not in by_name]:
            raise CommonweightError(f"{name}: kohya's {module} has the rows of {lost[0]} too, which is no layer here")
        at = theirs.target([by_name[n] for n in layers], shapes.get)
        out[module] = _stacked(module, [changes.get(n) for n in at.names], [shapes[n] for n in at.names], at)
    return out


def _module(name: str, kind: str) -> tuple[str, Layers]:
    """(the file's module, its layers), underscored."""
    flat = name.replace(".", "_")
    for (block, home), table in _BLOCKS[kind].items():
        if m := re.fullmatch(rf"{home}_(\d+)_(.+)", flat):
            found = next((k for k, layers in table.items() if m[2] in layers), None)
            if found is not None:
                return f"{block}_{m[1]}_{found}", tuple(f"{home}_{m[1]}_{n}" for n in table[found])
    found = next((k for k, v in _OUTER[kind].items() if v == flat), None)
    if found is None:
        raise CommonweightError(f"{name}: kohya's scripts have no name for this layer of a {kind}; export to diffusers")
    return found, (flat,)


def module_of(name: str, kind: str) -> str:
    """What the file calls the layer that has the rows of this one."""
    return _module(name, kind)[0]


def _stacked(
    module: str, changes: Sequence[Change | None], shapes: Sequence[tuple[int, int]], at: theirs.Target
) -> Change:
    """One change for the rows of all. A change of a layer that has none is nothing."""
    if (
        biased := next((n for n, c in zip(at.names, changes) if c is not None and c.bias is not None), None)
    ) is not None:
        raise CommonweightError(f"{biased}: the tenant changes its bias, which kohya's LoRA cannot; use diffusers")
    given = [c for c in changes if c is not None]
    m = None
    if any(c.m is not None for c in given):
        if len(given) < len(changes):
            absent = next(n for n, c in zip(at.names, changes) if c is None)
            raise CommonweightError(
                f"{module}: magnitudes are of all of its rows, and the tenant does not change {absent}; make the "
                "tenant with this site, or export to diffusers"
            )
        m = torch.cat([_of(c.m) for c in given])
    As, Bs = [_of(c.A) for c in given], [_of(c.B) * c.scale for c in given]
    if len({A.shape for A in As}) == 1 and all(torch.equal(A, As[0]) for A in As):
        A, Bs = As[0], iter(Bs)
        B = torch.cat([next(Bs) if c is not None else A.new_zeros(out, len(A)) for c, (out, _) in zip(changes, shapes)])
    else:
        A, B = torch.cat(As), torch.block_diag(*_blocks(changes, Bs, shapes))
    if at.turned:
        B, m = theirs.swapped(B), None if m is None else theirs.swapped(m)
    return Change(A, B, 1.0, m)


def _blocks(changes: Sequence[Change | None], Bs: Sequence[Tensor], shapes: Sequence[tuple[int, int]]) -> list[Tensor]:
    """(out, r) of each layer; (out, 0) of one that has no change."""
    each = iter(Bs)
    return [next(each) if c is not None else Bs[0].new_zeros(out, 0) for c, (out, _) in zip(changes, shapes)]


def _of(t: Tensor | None) -> Tensor:
    assert t is not None
    return t
