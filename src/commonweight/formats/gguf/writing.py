"""Low-rank changes as llama.cpp's LoRA file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ...core import CommonweightError
from ..changes import Change
from .container import write as pack
from .names import INVOCATION, TABLE, About, bare, name_of, turn


def write(changes: Mapping[str, Change], about: About, invocation: Sequence[int] = ()) -> bytes:
    """The bytes of a file for ``llama-cli --lora``. changes: by the model's own names, each in factors, of experts
    (E, r, inp) and (E, out, r). invocation: tokens from which on it acts.

    The scale lies in alpha where all layers have one scale and rank, else in lora_b, and alpha is 0, which llama.cpp
    takes for a scale of 1. Raises: CommonweightError for what llama.cpp's LoRA cannot say.
    """
    for name, c in changes.items():
        if c.bias is not None or c.m is not None:
            what = "a bias" if c.m is None else "magnitudes"
            raise CommonweightError(
                f"{name}: the tenant changes {what}, which llama.cpp's LoRA cannot; use PEFT's format"
            )
    alphas = {c.scale * c.A.shape[-2] for c in changes.values() if c.A is not None}
    ranks = {c.A.shape[-2] for c in changes.values() if c.A is not None}
    alpha = alphas.pop() if len(alphas) == len(ranks) == 1 else 0.0
    tensors: dict[str, Tensor] = {}
    for module, c in changes.items():
        name = name_of(module, about)
        if name is None and bare(module, about):
            raise CommonweightError(
                f"{module}: llama.cpp puts no LoRA on this layer of a {about.model_type}, and would serve a part of "
                "the tenant; make the tenant without this site, as with sites='*.mlp.*|*.o_proj', keep it in its own "
                "file (host.save), or write the merged weights (host.merged)"
            )
        if name is None:
            raise CommonweightError(f"{module}: llama.cpp has no such layer of a {about.model_type} that takes a LoRA")
        if name == "output.weight" and about.tied:
            raise CommonweightError(
                f"{module}: is tied to the embedding, so llama.cpp keeps no {name} that a LoRA could lie on; make the "
                "tenant without this site"
            )
        assert c.A is not None and c.B is not None
        B = turn(name, c.B, about)
        A = c.A.T if name == TABLE else c.A  # (vocabulary, r), of which llama.cpp takes rows
        tensors[f"{name}.lora_a"], tensors[f"{name}.lora_b"] = A, B if alpha else B * c.scale
    keys: dict[str, str | float | list[int]] = {
        "general.architecture": about.architecture.name,
        "general.type": "adapter",
        "adapter.type": "lora",
        "adapter.lora.alpha": float(alpha),
    }
    if invocation:
        keys[INVOCATION] = list(invocation)
    return pack(keys, tensors)
