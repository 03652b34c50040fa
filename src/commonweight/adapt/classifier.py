"""An encoder with a place for heads: a host's tenants bring the heads, this module brings the features."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.models.auto import modeling_auto

from ..core import CommonweightError, unknown

POOLER = "pooler"
POOLS = "mean", "last", "cls", POOLER


class HeadSite(nn.Module):
    """Where a tenant's classifier reads. Returns its input: the plain base answers with the features."""

    is_head_site = True

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, features: Tensor) -> Tensor:
        return features


class Classifier(nn.Module):
    """Pooled features of an encoder, and logits where a tenant has a head.

    encoder: a model of ``AutoModel``. Of an encoder-decoder only the encoder is kept.
    pool: "mean" over the attention mask, "last" for the last token that is no padding, "cls" for the first one,
    "pooler" for the encoder's own pooler; None chooses "last" for decoder-only models and "mean" for the others. Heads
    on "cls" or a pooler have a place of another name, so that no head reads features on which it was not trained.
    Shapes: input_ids (B, T), attention_mask (B, T) -> logits (B, labels); without a head (B, d). Features are
    pooled in float32, whatever the encoder runs in. Cost: the encoder, and B T d additions.
    """

    accepts_loss_kwargs = False  # the loss is a mean over rows; transformers.Trainer asks

    def __init__(self, encoder: nn.Module, pool: str | None = None):
        super().__init__()
        config: Any = encoder.config
        if getattr(config, "is_encoder_decoder", False):
            encoder = encoder.get_encoder()  # type: ignore[operator]
        self.encoder = encoder
        self.config = config
        if pool is not None and pool not in POOLS:
            raise unknown("pool", str(pool), POOLS)
        self.pool = pool or ("last" if decoder_only(config) else "mean")
        self.place = f"{self.pool}_head" if self.pool in ("cls", POOLER) else "head"
        self.add_module(self.place, HeadSite(self._width()))

    def _width(self) -> int:
        """Of the pooled features."""
        return width(self.config)

    def features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Tensor) -> Tensor:
        """Pooled hidden states, (B, d) in float32: a pass of the whole model, as a host has to see."""
        shown = self(input_ids, attention_mask, output_features=True, **inputs).hidden_states
        return shown[0]

    def _features(self, input_ids: Tensor, attention_mask: Tensor | None = None, **inputs: Tensor) -> Tensor:
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        out = self.encoder(input_ids=input_ids, attention_mask=attention_mask, **inputs)
        if self.pool == POOLER:
            return out.pooler_output.float()
        hidden = out.last_hidden_state
        # Methods that put tokens in front lengthen the sequence; the mask belongs to its end.
        hidden = hidden[:, -attention_mask.shape[1] :].float()
        return pooled(hidden, attention_mask, self.pool)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        output_features: bool = False,
    ) -> SequenceClassifierOutput:
        """labels: class numbers (B,); the loss is the mean cross entropy. Logits of -inf (a mixed batch pads narrower
        heads with them) take no part in it. output_features: `hidden_states` are the pooled features, (B, d)."""
        extra = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        features = self._features(input_ids, attention_mask, **extra)
        logits = self.get_submodule(self.place)(features)
        loss = None if labels is None else F.cross_entropy(logits.float(), labels)
        shown = (features,) if output_features else None
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=shown)  # type: ignore[arg-type]


def pooled(hidden: Tensor, mask: Tensor, pool: str) -> Tensor:
    """One vector a row, (B, d), of hidden states (B, T, d) under a mask (B, T): "mean", "last" or "cls" (the first)."""
    if pool == "mean":
        weight = mask.unsqueeze(-1).to(hidden.dtype)
        return (hidden * weight).sum(1) / weight.sum(1).clamp(min=1e-9)
    place = torch.arange(hidden.shape[1], device=hidden.device)
    at = (mask * place).argmax(1) if pool == "last" else mask.argmax(1)
    return hidden[torch.arange(len(hidden), device=hidden.device), at]


def pool_of_transformers(encoder: nn.Module) -> str:
    """How transformers' own classifier of this architecture pools: "last" or "pooler", whichever gives its logits.

    Its class is built around this encoder, without any weights but a head at random, and both are run on a row of four
    tokens. Cost: three forwards of it. Raises: CommonweightError where its head is more than one linear layer over
    pooled features, or has weights that the encoder does not bring.
    """
    from transformers import AutoModelForSequenceClassification

    config = copy.deepcopy(encoder.config)
    config.num_labels = 3  # type: ignore[union-attr]
    try:
        with torch.device("meta"):
            theirs = AutoModelForSequenceClassification.from_config(config).eval()
    except (ValueError, KeyError) as e:
        raise CommonweightError(
            f"{type(encoder).__name__}: transformers has no classifier of it: give no labels"
        ) from e
    name = next((n for n in ("score", "classifier") if isinstance(getattr(theirs, n, None), nn.Linear)), None)
    if name is not None:
        setattr(theirs, theirs.base_model_prefix, encoder)
        like = next(encoder.parameters())
        linear = getattr(theirs, name).to_empty(device=like.device).to(like.dtype)
        ids = torch.tensor([[5, 7, 6, 8]], device=like.device)
        with torch.no_grad():
            for p in linear.parameters():
                p.copy_(torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
            pools = ("last", *((POOLER,) if getattr(encoder, POOLER, None) is not None else ()))
            for pool in pools if not any(p.is_meta for p in theirs.parameters()) else ():
                mine = linear(Classifier(encoder, pool).features(ids).to(like.dtype))
                wanted = theirs(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
                if torch.allclose(mine, wanted, rtol=1e-2, atol=1e-2):
                    return pool
    raise CommonweightError(
        f"{type(theirs).__name__}: its head is more than one linear layer over pooled features, which a tenant's head "
        "cannot hold; import the adapters without their heads"
    )


def width(config: Any) -> int:
    """Hidden width of a model's output, from its configuration. Raises: CommonweightError where that does not say."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    said = text.output_hidden_size if getattr(text, "add_adapter", False) else getattr(text, "hidden_size", None)
    stages = getattr(text, "hidden_sizes", None)  # of ResNet, ConvNeXt
    found = said or (stages[-1] if stages else getattr(text, "d_model", None))
    if found is None:
        raise CommonweightError(f"{type(config).__name__} does not say how wide the model's features are")
    return int(found)


def decoder_only(config: Any) -> bool:
    """Whether this is a causal language model: no masked-language twin, no encoder, or told to be a decoder."""
    if getattr(config, "is_encoder_decoder", False):
        return False
    kind = getattr(config, "model_type", "")
    causal = kind in modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    both_ways = kind in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not getattr(config, "is_decoder", False)
    return causal and not both_ways
