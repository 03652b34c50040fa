"""A base that is made for a form."""

from __future__ import annotations

from pathlib import Path

import torch
import transformers as tf
from torch import Tensor, nn

from ..elsewhere.page import ROOT
from ..shapes import minilm_folder

KEPT, BITS, GROUP = 0.5, 3, 64


def compressed() -> Path:
    """The encoder with half of each layer's weight at zero and the rest in few bits, as numbers; made once."""
    folder = ROOT / ".cache" / "forms" / "compressed"
    if not (folder / "config.json").exists():
        model = tf.AutoModel.from_pretrained(minilm_folder(), add_pooling_layer=False)
        for layer in model.encoder.modules():
            if isinstance(layer, nn.Linear):
                layer.weight.data = few(layer.weight.data)
        tf.AutoTokenizer.from_pretrained(minilm_folder()).save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def few(weight: Tensor) -> Tensor:
    """(out, inp): what is of least magnitude in all of it is zero; then, `GROUP` numbers of a row at a time, the
    nearest of 2 ** BITS - 1 values, as far apart as the largest of them asks, zero among them."""
    least = weight.abs().flatten().kthvalue(round((1 - KEPT) * weight.numel())).values
    groups = torch.where(weight.abs() > least, weight, 0.0).reshape(len(weight), -1, GROUP)
    top = 2 ** (BITS - 1) - 1
    step = (groups.abs().amax(-1, keepdim=True) / top).clamp(min=1e-12)
    return ((groups / step).round() * step).reshape(weight.shape)
