"""Tenants of one model of a diffusion pipeline, as files of diffusers and of kohya's scripts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from ...core import CommonweightError
from ...formats import kohya
from ...formats.changes import Change
from ...formats.peft import short
from ..hooked import HookedModel
from ..names import said
from ..peft.base import Frozen
from ..peft.names import within


def write(base: HookedModel, found: Mapping[str, Change], format: str, part: str | None = None) -> bytes:
    """found: by sites. part: what the file calls the model; None for the word for a model of its class.

    Raises: CommonweightError for a model that stands in no pipeline, and for tables of embeddings.
    """
    kind = type(base.inner).__name__
    given = part if part is not None else kohya.part_of(kind, format)
    if given is None:
        flux = "Transformer" in kind
        raise CommonweightError(
            f"{kind}: {_NO_NAMES if flux else _NO_PIPELINE.format(format)}; export to {'diffusers' if flux else 'peft'}"
        )
    if not isinstance(given, str) or not kohya.PARTS[format].fullmatch(given):
        raise CommonweightError(f"part={given!r}: wanted what {format} calls a model: {_WORDS[format]}")
    prefix, table = within(base), next((n for n in found if base.modules[n].kind == "embedding"), None)
    if table is not None:
        raise CommonweightError(f"{table}: a table of embeddings, for which {format} has no place; export to peft")
    flat = format == "kohya" and kind.startswith("CLIPText") and not hasattr(base.inner, "text_model")
    top = "text_model." if flat else ""  # as transformers 4 called it
    kernels = {top + short(n, prefix): Frozen(base).kernel(n) for n in found}
    named = {top + short(n, prefix): c for n, c in found.items()}
    if format == "diffusers":
        return kohya.diffusers(named, given, kernels)
    if kind in kohya.KINDS:
        shapes = {
            short(s.name, prefix): (s.out, s.inp)
            for s in base.every
            if base.modules[s.name.split("[")[0]].kind in _LAYERS
        }
        kernels = {kohya.module_of(n, kind): k for n, k in kernels.items()}
        if kind.startswith("Flux") and (outer := [n for n in named if "transformer_blocks." not in n]):
            warnings.warn(
                f"{outer[0]} and {len(outer) - 1} more: diffusers 0.42.1 leaves out what is in no block in a file of "
                "kohya's keys; ComfyUI reads it. For diffusers use format='diffusers'",
                stacklevel=4,
            )
        named = kohya.joined(named, kind, shapes)
    data = kohya.kohya(named, given, kernels, _stability(base.inner))
    if (
        kind.startswith("CLIPText")
        and (lost := [n for n in named if n.endswith(_READ)])
        and not any(n.endswith("out_proj") for n in named)
    ):
        warnings.warn(
            f"{lost[0]} and {len(lost) - 1} more: diffusers 0.42.1 leaves out query, key and value of a text encoder "
            "in a file of kohya's keys that has no out_proj; kohya's scripts and ComfyUI read them. For diffusers use "
            "format='diffusers'",
            stacklevel=4,
        )
    return data


_LAYERS = "linear", "conv"
_READ = "q_proj", "k_proj", "v_proj"
_NO_NAMES = (
    "kohya's scripts train transformers by names and layers of their own, of which Flux, SD3 and Wan are written"
)
_NO_PIPELINE = "{} holds adapters of a pipeline's models (UNet, transformer, CLIP's text encoders), and this is none"
_WORDS = {
    "diffusers": "unet, transformer, transformer_2, prior, text_encoder, text_encoder_2, ...",
    "kohya": "unet, te, te1, te2, ...",
}


def _stability(inner: Any) -> Callable[[str], str]:
    """Of SDXL, which kohya's scripts know by Stability's names; of other UNets as diffusers has them."""
    config: Any = getattr(inner, "config", None)
    layers = said(config, "layers_per_block")
    if said(config, "addition_embed_type") != "text_time" or not isinstance(layers, int):
        return str
    plain = [i for i, kind in enumerate(said(config, "up_block_types") or ()) if "Attn" not in kind]
    return partial(kohya.stability_name, layers=layers, plain=plain)
