"""Just enough of a model for PEFT to put an adapter on: its linear layers, convolutions and tables, by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ....core import Site
from ....formats.adapter import Frozen


def skeleton(sites: Mapping[str, Site], base: Frozen, wanted: Callable[[str], bool], config: Any) -> nn.Module:
    """A tree of linear layers (and GPT-2's Conv1D), convolutions and tables of embeddings, with copies of the base's
    weights in float32.

    In the model's order, for PEFT may draw layer after layer. A convolution has neither padding nor strides nor groups,
    on which its weight does not depend.

    sites: by the names that PEFT knows. wanted: whether PEFT adapts a layer; others are left out. Cost: the wanted
    weights once more.
    """
    root = nn.Module()
    root.config = config
    for name, site in sites.items():
        if site.kind not in ("linear", "conv", "embedding") or site.rows is not None or not wanted(name):
            continue
        at = root
        *path, last = name.split(".")
        for part in path:
            if part not in at._modules:
                at.add_module(part, nn.Module())
            at = at._modules[part]
            assert at is not None
        at.add_module(last, _layer(site, base))
    return root.requires_grad_(False).eval()


def _layer(site: Site, base: Frozen) -> nn.Module:
    weight = base.weight(site.name).detach().cpu().float()
    if site.kind == "embedding":
        return nn.Embedding.from_pretrained(weight.T.contiguous().clone())
    bias = base.bias(site.name).detach().cpu().float() if site.bias else None
    if site.kind == "conv":
        kernel = base.kernel(site.name)
        inp = site.inp // math.prod(kernel)
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(kernel) - 1](inp, site.out, kernel, bias=bias is not None)  # type: ignore[arg-type]
        conv.weight = nn.Parameter(weight.clone().view(site.out, inp, *kernel), requires_grad=False)
        if bias is not None:
            conv.bias = nn.Parameter(bias.clone(), requires_grad=False)
        return conv
    if base.transposed(site.name):
        from transformers.pytorch_utils import Conv1D  # PEFT looks for this very class

        layer = Conv1D(site.out, site.inp)
        layer.weight = nn.Parameter(weight.T.contiguous().clone(), requires_grad=False)
        layer.bias = nn.Parameter(torch.zeros(site.out) if bias is None else bias.clone(), requires_grad=False)
        return layer
    layer = nn.Linear(site.inp, site.out, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone(), requires_grad=False)
    return layer
