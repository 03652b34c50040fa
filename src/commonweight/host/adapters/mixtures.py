"""Experts and routers as llama.cpp and mlx-lm have them: gate, up and down apart, all experts in one tensor."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...core import CommonweightError
from ...formats import gguf, mlx
from ...formats.changes import Change
from ..peft.mixtures import Factors

_KNOWN: dict[str, tuple[str, ...]] = {"gguf": gguf.MIXTURES, "mlx": (*mlx.MIXTURES, *mlx.ALIKE)}
_IN_TURNS = ("gpt_oss",)  # gate and up alternate, row by row (transformers: ``gate_up[..., ::2]``)
_APART = "gate_proj", "up_proj", "down_proj"


def projections(name: str, found: Factors, format: str, model_type: str) -> dict[str, Change]:
    """By the names in transformers, with gate and up apart. The known models keep both in one weight, gate above up or
    in turns with it: both have the same A, each its rows of B.

    Raises: CommonweightError for models whose names in the format are not known here.
    """
    home, _, leaf = name.rpartition(".")
    router = found.at.kind == "router"
    if format not in _KNOWN:
        raise CommonweightError(
            f"{name}: {format} has no names for the experts and routers of a mixture. Export to peft, gguf or mlx, "
            "keep the tenant in its own file (host.save), or write the merged weights (host.merged)"
        )
    if model_type not in _KNOWN[format] or not (router or leaf in (*_APART, "gate_up_proj")):
        raise CommonweightError(
            f"{name}: what {format} calls the experts and routers of model_type {model_type!r} is not known here; "
            f"known are {', '.join(_KNOWN[format])}. Export to peft, keep the tenant in its own "
            "file (host.save), or write the merged weights (host.merged)"
        )
    if router and format == "mlx" and model_type in mlx.BARE:
        raise CommonweightError(
            f"{name}: mlx-lm's router of model_type {model_type!r} is no linear layer, and LoRA has no place there; "
            "make the tenant without this site, or export to peft"
        )
    if router:
        return {name: Change(found.A[0], found.B[0])}
    if leaf != "gate_up_proj":
        return {name: Change(found.A, found.B)}
    gate, up = (found.B[:, ::2], found.B[:, 1::2]) if model_type in _IN_TURNS else found.B.chunk(2, 1)
    return {f"{home}.gate_proj": Change(found.A, gate), f"{home}.up_proj": Change(found.A, up)}


def settled(changes: Mapping[str, Change], model_type: str) -> dict[str, Change]:
    """Changes whose gate stands above up, as they come together, in the order that the model has. By our names."""
    if model_type not in _IN_TURNS:
        return dict(changes)
    return {
        n: c._replace(B=_in_turns(c.B)) if ".gate_up_proj[" in n and c.B is not None else c for n, c in changes.items()
    }


def _in_turns(rows: Tensor) -> Tensor:
    """(2 d, r): the first row of gate, the first of up, the second of gate, and so on."""
    return torch.stack(rows.chunk(2), 1).flatten(0, 1)
