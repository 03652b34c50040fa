"""Factors of LoRA as PEFT keeps them at tables of embeddings and convolutions, and as matrices.

A table's are ``lora_embedding_A`` (r, V) and ``lora_embedding_B`` (d, r), without ``.weight``. A convolution's are
convolutions: (r, d_in, *kernel) and (d_out, r, 1, ...).
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from ...core import Site

_OF_TABLE = {f"lora_embedding_{f}": f"lora_{f}.weight" for f in "AB"}


def flat(tensors: Mapping[str, Tensor], prefix: str, sites: Mapping[str, Site]) -> dict[str, Tensor]:
    """Tensors under the keys and in the shapes of linear layers, where their site is a table or a convolution."""
    out = {}
    for key, value in tensors.items():
        for theirs, ours in _OF_TABLE.items():
            name = key.removeprefix(prefix).removesuffix(f".{theirs}")
            if key.endswith(f".{theirs}") and name in sites and sites[name].kind == "embedding":
                key = f"{prefix}{name}.{ours}"
        site = sites.get(key.removeprefix(prefix).rpartition(".lora_")[0])
        out[key] = value.flatten(1) if site is not None and site.kind == "conv" and value.dim() > 2 else value
    return out


def kept(tensors: Mapping[str, Tensor], sites: Mapping[str, Site], kernels: Mapping[str, tuple[int, ...]]):
    """The way back, keys without a prefix. kernels: of the convolutions."""
    out = {}
    for key, value in tensors.items():
        name, _, slot = key.rpartition(".lora_")
        site = sites.get(name)
        if site is not None and site.kind == "embedding":
            key = f"{name}.lora_embedding_{slot[0]}"
        elif site is not None and site.kind == "conv" and value.dim() == 2:
            kernel = kernels[name]
            value = value.unflatten(1, (-1, *kernel)) if slot[0] == "A" else value[(..., *(None for _ in kernel))]
        out[key] = value
    return out
