"""Families of sites: the towers of a model of several senses, and the kinds that are read when they are named."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ...core import Site
from ..names import unwrapped

TOWERS = "language", "vision", "audio", "projector"
FAMILIES = (*TOWERS, "embeddings", "heads", "convolutions")
_PARTS = (  # first match wins, from the outermost part of a name on; a projector lies inside of a tower in some models
    ("projector", r"(mm_|multi_?modal_)?projector|connector|merger(_list)?|deepstack_merger_list|"
     r"\w*(visual|text|vision|audio|image|multimodal)_projection|q_?former|\w*resampler\w*|embed_(vision|audio)|"
     r"language_projection|aligner|abstractor"),
    ("vision", r"(vision|visual|image|vqmodel|video)\w*|vit|pixel\w*|patch_embed\w*"),
    ("audio", r"(audio|speech|acoustic|mel|sound)\w*"),
    ("language", r"(language|text)\w*|lm_head|llm"),
)  # fmt: skip
_SENSES = {"pixel_values": "vision", "input_values": "audio", "input_features": "audio", "input_ids": "language"}


def towers(model: nn.Module) -> Callable[[str], str]:
    """Which tower a site's name belongs to. A model of one sense is one tower: of its main input; so is one of
    diffusers, which makes images.

    Of an encoder and a decoder the encoder takes the main input, as Whisper's does, and the decoder speaks.
    """
    inner: Any = unwrapped(model)
    if type(inner).__module__.startswith("diffusers."):
        return lambda name: "vision"
    sense = _SENSES.get(getattr(inner, "main_input_name", "input_ids"), "language")
    paired = bool(getattr(getattr(inner, "config", None), "is_encoder_decoder", False)) and _speaks(inner)
    if not paired and not _found(inner):
        return lambda name: sense
    rest = "language" if paired or _reads_tokens(inner) else sense

    def tower(name: str) -> str:
        parts = re.split(r"[.\[]", name)
        if any(re.fullmatch(_PARTS[0][1], p) for p in parts):
            return "projector"
        for part in parts:
            if paired and part == "encoder":
                return sense
            if found := next((t for t, pattern in _PARTS[1:] if re.fullmatch(pattern, part)), None):
                return found
        return rest

    return tower


def _speaks(model: Any) -> bool:
    """Whether its decoder has a vocabulary: DETR's gives boxes."""
    config = model.config
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    return getattr(config, "vocab_size", None) is not None


def _reads_tokens(model: Any) -> bool:
    """Whether its input embedding is a table: a classifier of images has its head beside its one tower."""
    try:
        return isinstance(model.get_input_embeddings(), nn.Embedding)
    except (AttributeError, NotImplementedError):
        return True


def _found(model: nn.Module) -> set[str]:
    """Towers other than language that the first parts of the modules' names tell of."""
    tops = {p for n, _ in model.named_modules() for p in n.split(".")[:3]}
    return {t for t, pattern in _PARTS[1:3] for p in tops if re.fullmatch(pattern, p) and not p.startswith("patch")}


def families(model: nn.Module, every: list[Site], default: list[Site]) -> Mapping[str, list[Site]]:
    """What each word means in a pattern of sites. A tower: the default sites in it, and of a projector all layers.

    ``embeddings``: tables of embeddings. ``heads``: linear layers outside of the
    blocks that are no projector's. ``convolutions``: those outside of the blocks, such as patch embeddings.
    """
    tower, usual = towers(model), {s.name for s in default}
    out: dict[str, list[Site]] = {f: [] for f in FAMILIES}
    for s in every:
        if s.kind == "head":
            continue
        at = tower(s.name)
        if s.name in usual or (at == "projector" and s.kind in ("linear", "conv", "norm")):
            out[at].append(s)
        elif s.kind == "embedding":
            out["embeddings"].append(s)
        elif s.kind in ("linear", "conv"):
            out["heads" if s.kind == "linear" else "convolutions"].append(s)
    return out
