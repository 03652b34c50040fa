"""Which tokens of what a site is given are no padding: those of the texts by the texts' mask, others by their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from .names import paired
from .sites import towers

MASKS = (
    "attention_mask", "decoder_attention_mask", "decoder_input_ids", "pixel_attention_mask", "feature_attention_mask",
    "input_features_mask",
)  # fmt: skip
_OF_TOWER = {"vision": ("pixel_attention_mask",), "audio": ("feature_attention_mask", "input_features_mask")}


def windowed(config: Any) -> bool:
    """Whether some attention of a text's tokens sees those near it alone."""
    config = config.get_text_config() if hasattr(config, "get_text_config") else config
    if kinds := getattr(config, "layer_types", None):
        return any("full" not in str(kind) for kind in kinds)
    known = [getattr(config, n, None) for n in ("sliding_window", "attention_chunk_size")]
    return any(known) and getattr(config, "use_sliding_window", True) is not False


def column(mask: Tensor, tokens: int, behind: int) -> int:
    """Of a mask (B, K), K >= tokens, where those of a pass begin: behind a cache's, else they are the last."""
    last = mask.shape[1] - tokens
    return behind if 0 <= behind <= last else last


class Padding:
    """Of one model. tower: to which of its senses a site belongs. windows: see `windowed`."""

    def __init__(self, model: nn.Module):
        self.tower = towers(model)
        self.two = paired(model)  # an encoder, and a decoder that reads it
        self.windows = windowed(getattr(model, "config", None))
        # of models that hear: a mask of samples -> one of frames
        frames: Any = getattr(model, "_get_feature_vector_attention_mask", None)
        self.frames: Callable[[int, Tensor], Tensor] | None = frames

    def of_encoder(self, site: str) -> bool:
        """Whether a site is in the encoder before a decoder."""
        parts = site.split(".")
        return self.two and "encoder" in parts and "decoder" not in parts

    def mask(self, masks: Mapping[str, Any], site: str) -> Any:
        """The mask of a text's tokens at a site: of a decoder behind an encoder its own."""
        two = self.two or "decoder_input_ids" in masks
        return masks.get("decoder_attention_mask" if two and "decoder" in site.split(".") else "attention_mask")

    def there(
        self, masks: Mapping[str, Any], beside_texts: bool, site: str, x: Tensor, behind: int = -1
    ) -> Tensor | None:
        """(B, T) bool for what a site is given (B, T, d); None where nothing says so.

        masks: those of the pass. beside_texts: whether it has texts, whose ``attention_mask`` is then theirs alone:
        tokens of images and sounds have a mask of their own, or none. behind: how many tokens a cache holds before
        these, -1 where it is not known: a mask may have columns for those to come.
        """
        if x.dim() < 3:
            return None
        tower = self.tower(site)
        if tower == "language":
            mask = self.mask(masks, site)
            if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != x.shape[0]:
                return None
            if mask.shape[1] < x.shape[1]:
                return None
            at = column(mask, x.shape[1], behind)
            return mask[:, at : at + x.shape[1]].bool()
        own = _OF_TOWER.get(tower, ())
        for name in own if beside_texts else (*own, "attention_mask"):
            mask = masks.get(name)
            if not isinstance(mask, Tensor) or mask.dim() != 2 or mask.shape[0] != x.shape[0]:
                continue
            if mask.shape[1] == x.shape[1]:
                return mask.bool()
            if name == "attention_mask" and self.frames is not None:
                return self.frames(x.shape[1], mask.long()).bool()
        return None
