"""Experts and routers as llama.cpp and mlx-lm have them: gate, up and down apart, all experts in one tensor."""

from __future__ import annotations

from ...core import CommonweightError
from ...formats import gguf, mlx
from ...formats.changes import Change
from ..peft.mixtures import Factors

_KNOWN: dict[str, tuple[str, ...]] = {"gguf": gguf.MIXTURES, "mlx": tuple(mlx.MIXTURES)}
_APART = "gate_proj", "up_proj", "down_proj"


def projections(name: str, found: Factors, format: str, model_type: str) -> dict[str, Change]:
    """By the names in transformers, with gate and up apart. The known models keep both in one weight, gate above up:
    the halves have the same A, each its rows of B.

    Raises: CommonweightError for models whose names in the format are not known here.
    """
    home, _, leaf = name.rpartition(".")
    router = found.at.kind == "router"
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
    gate, up = found.B.chunk(2, 1)
    return {f"{home}.gate_proj": Change(found.A, gate), f"{home}.up_proj": Change(found.A, up)}
