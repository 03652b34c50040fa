"""An encoder of images or of sounds with a place for heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from ..core import CommonweightError, first_line, unknown
from ..host.weights import device_of
from .classifier import POOLER, Classifier, pooled

SENSES = {"pixel_values": "image", "input_values": "audio", "input_features": "audio"}
POOLS = "mean", "cls", POOLER
SIZE = 224


class Sensed(Classifier):
    """As `Classifier`: pooled features of an encoder, and logits where a tenant has a head.

    pool: "mean" (None) over patches, a map's places, or the frames that are no padding; "cls" for the first; "pooler"
    for the encoder's own. sense: what it reads, of `SENSES`. Shapes: what the model's own processor gives, rows first
    -> logits (B, labels); without a head (B, d). Cost: to be made, of images a forward of one, as configurations name
    the width of features in many ways. Raises: CommonweightError for a model that does not answer with such features.
    """

    def __init__(self, encoder: nn.Module, pool: str | None = None):
        if pool is not None and pool not in POOLS:
            raise unknown("pool", str(pool), POOLS)
        self_frames = getattr(encoder, "_get_feature_vector_attention_mask", None)
        super().__init__(encoder, pool or "mean")
        self.sense = SENSES[encoder.main_input_name]  # type: ignore[index]
        if self_frames is not None:
            self._get_feature_vector_attention_mask = self_frames
        # a norm over all frames is of the padding too: such a model was trained without a mask
        self.masked = getattr(self.config, "feat_extract_norm", None) != "group"

    def forward(  # type: ignore[override]
        self,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        output_features: bool = False,
        **inputs: Tensor,
    ) -> SequenceClassifierOutput:
        """attention_mask: (B, samples) or (B, frames). labels, output_features: as in `Classifier`."""
        like = self._like()
        inputs = {k: v.to(like) if v.is_floating_point() else v for k, v in inputs.items()}
        if attention_mask is not None and self.masked:
            inputs["attention_mask"] = attention_mask
        features = self._pooled(self.encoder(**inputs), attention_mask)
        logits = self.get_submodule(self.place)(features)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        shown = (features,) if output_features else None
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=shown)  # type: ignore[arg-type]

    def features(self, **inputs: Any) -> Tensor:  # type: ignore[override]
        return self(output_features=True, **inputs).hidden_states[0]

    @torch.no_grad()
    def _width(self) -> int:
        if SENSES.get(str(getattr(self.encoder, "main_input_name", ""))) == "audio":
            return super()._width()
        shape = (1, *image_shape(self.config))
        try:
            blank = torch.zeros(shape, dtype=self._like(), device=device_of(self.encoder))
            found = self._pooled(self.encoder.eval()(pixel_values=blank), None)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as e:
            told = first_line(e)
        else:
            if found.dim() == 2 and len(found) == 1:
                return found.shape[1]
            told = f"features of shape {tuple(found.shape)}; wanted (1, d)"
        name = getattr(self.config, "_name_or_path", "")
        raise CommonweightError(
            f"model {name!r} ({type(self.encoder).__name__}) has no features for a classifier: of pixel_values {shape} "
            f"came: {told}"
        )

    def _like(self) -> torch.dtype:
        return next(p.dtype for p in self.encoder.parameters() if p.is_floating_point())

    def _pooled(self, out: Any, mask: Tensor | None) -> Tensor:
        if self.pool == POOLER:
            if getattr(out, "pooler_output", None) is None:
                raise CommonweightError(f"{type(self.encoder).__name__} has no pooler; take pool mean or cls")
            return out.pooler_output.flatten(1).float()
        hidden = out.last_hidden_state.float()
        if hidden.dim() == 4:  # (B, d, height, width)
            hidden = hidden.flatten(2).transpose(1, 2)
        frames = hidden.shape[1]
        of_samples = getattr(self, "_get_feature_vector_attention_mask", None)
        if mask is not None and mask.shape[1] != frames:
            mask = None if of_samples is None else of_samples(frames, mask)
        if mask is None:
            mask = torch.ones(hidden.shape[:2], dtype=torch.long, device=hidden.device)
        return pooled(hidden, mask, self.pool)


def image_shape(config: Any) -> tuple[int, int, int]:
    """(channels, height, width) of an image that a model was made for; where its configuration names no size, `SIZE`,
    which is ours."""
    config = getattr(config, "vision_config", None) or config
    size = getattr(config, "image_size", None) or SIZE
    if isinstance(size, dict):
        size = size["height"], size["width"]
    height, width = (size, size) if isinstance(size, int) else (size[0], size[-1])
    return int(getattr(config, "num_channels", None) or 3), int(height), int(width)
