"""What llama.cpp's files must know of a model."""

from __future__ import annotations

from typing import Any

from ...formats.gguf import About
from ..hooked import HookedModel
from ..names import said


def about(base: HookedModel) -> About:
    """From the model's config, of a vision-language model from that of its text."""
    config: Any = getattr(base.inner, "config", None)
    config = getattr(config, "text_config", None) or config
    heads = int(getattr(config, "num_attention_heads", None) or 0)
    keys = int(said(config, "num_key_value_heads") or heads)
    return About(
        str(getattr(config, "model_type", "")), heads, keys, bool(getattr(config, "tie_word_embeddings", False))
    )
