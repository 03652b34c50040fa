"""An encoder of images or of sounds with a place for heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from ..core import CommonweightError, unknown
from .classifier import POOLER, Classifier, pooled

SENSES = {"pixel_values": "image", "input_values": "audio", "input_features": "audio"}
POOLS = "mean", "cls", POOLER


class Sensed(Classifier):
    """As `Classifier`: pooled features of an encoder, and logits where a tenant has a head.

    pool: "mean" (None) over patches, a map's places, or the frames that are no padding; "cls" for the first; "pooler"
    for the encoder's own. sense: what it reads, of `SENSES`. Shapes: what the model's own processor gives, rows first
    -> logits (B, labels); without a head (B, d).
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
        like = next(p.dtype for p in self.encoder.parameters() if p.is_floating_point())
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
