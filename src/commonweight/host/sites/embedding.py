"""Tables of embeddings: linear in a one-hot vector of the vocabulary, with a weight (width, vocabulary)."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import Site
from .found import Found, Whole
from .physical import Physical, plain_class

_OF_PLACES = re.compile(r"position|relative|distance|rel_", re.IGNORECASE)


class Embedding(Physical):
    """x is the numbers of the entries, (B, ..., 1). A table of positions may be read once for all rows of a batch."""

    def __init__(self, name: str, module: nn.Module):
        super().__init__(name, module, "embedding", True, bias_slot=None)
        self.forms = "through" if module.max_norm is None else "none"

    def scaled(self, t: Tensor) -> Tensor:
        """Times what some models multiply every entry by (Gemma, BART)."""
        scale: Any = getattr(self.module, "embed_scale", 1.0)
        return t * (scale.to(t.dtype) if isinstance(scale, Tensor) else scale)

    def seen(self, t: Tensor) -> Tensor:
        return t if t.is_floating_point() else t[..., None]

    def rows_of(self, x: Tensor) -> bool:
        return x.dim() > 2 and not _OF_PLACES.search(self.name)

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        m = self.module
        y = F.embedding(x[..., 0], weight.T, m.padding_idx)  # type: ignore[arg-type]
        longest: Any = m.max_norm
        if longest is not None:
            length = torch.linalg.vector_norm(y.detach(), m.norm_type, -1, keepdim=True)  # type: ignore[arg-type]
            y = y * (longest / (length + 1e-7)).clamp(max=1.0)
        return self.scaled(y)

    def many(self, x: Tensor, weight: Tensor) -> Tensor:
        ids = x[..., 0].flatten(1)
        y = weight.mT[torch.arange(len(ids), device=ids.device)[:, None], ids]
        pad: Any = self.module.padding_idx
        if pad is not None and y.requires_grad:
            y = torch.where(ids[..., None] == pad, y.detach(), y)
        return self.scaled(y)


def find(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    """A table that answers to numbers with its entries; one that makes the numbers by itself is none."""
    plain = plain_class(module)
    if not isinstance(module, nn.Embedding) or not isinstance(w := module._parameters.get("weight"), Tensor):
        return []
    if plain.forward is not nn.Embedding.forward and "embed_scale" not in {*vars(module), *module._buffers}:
        return []
    if not w.is_floating_point() or w.dim() != 2:
        return []
    return [Found(Embedding(name, module), Site(name, w.shape[1], w.shape[0], "embedding", "", False), False)]
