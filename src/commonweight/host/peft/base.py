"""What adapter files must know of the base, and copies of its parameters that they carry along."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ...formats import peft
from ...formats.peft import refusals
from ...formats.peft.keys import is_slot
from ..hooked import HookedModel
from ..moved import follows
from ..names import named
from ..sites import Further, Physical
from ..tenant import Derive


class Frozen(Derive):
    """The base's weights and biases, for the methods whose files need them."""

    def __init__(self, base: HookedModel):
        super().__init__(base.weight, base.bias)
        self._base = base

    def transposed(self, site: str) -> bool:
        return self._at(site).transposed

    def moves(self, site: str) -> bool:
        return follows(dict(named(self._base.model)), site)

    def scale(self, site: str) -> float:
        at = self._at(site)
        return at.scale if isinstance(at, Further) else 1.0

    def pools_all(self, site: str) -> bool:
        """Of a prompt: whether the model's own head reads all places of a row, as its config says."""
        config = getattr(self._base.inner, "config", None)
        return getattr(config, "classifier_pooling", None) not in (None, "cls", "bos")

    def crossed(self, site: str) -> bool:
        """Of an expert: whether PEFT's factors are of the parameter as it lies there, (inp, out)."""
        return bool(getattr(self._at(site), "crossed", False))

    def kernel(self, site: str) -> tuple[int, ...]:
        size: Any = getattr(self._at(site).module, "kernel_size", ())
        return tuple(size)

    def groups(self, site: str) -> int:
        """Of a convolution; 1 of any other layer."""
        return getattr(self._at(site).module, "groups", 1)  # type: ignore[return-value]

    def _at(self, site: str) -> Physical:
        return self._base.modules[site.split("[")[0]]


def without_copies(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """(config, tensors) without parameters that are equal to the base's: they say nothing.

    PEFT copies an embedding or a head into the file when an adapter lies on it, and every bias with bias="all".
    parameters: the base's, by the names of the file. ``modules_to_save`` and ``bias`` go when nothing of theirs is
    left.
    """
    for key in tensors:
        _placed(key, parameters.get(own(key)))
    out = {k: v for k, v in tensors.items() if (p := parameters.get(own(k))) is None or not _equal(v, p)}
    rest = [f".{own(k)}" for k in out if not is_slot(k)]
    config, named = dict(config), config.get("modules_to_save")
    if isinstance(named, list | tuple) and named:
        copied = [f".{own(k)}" for k in tensors if k not in out]
        said = [n for n in named if any(f".{n}." in k for k in rest) or not any(f".{n}." in k for k in copied)]
        if any(n in peft.heads.NAMES and n not in said for n in named):  # PEFT names all of them, and a model has one
            said = [n for n in said if n not in peft.heads.NAMES or any(f".{n}." in k for k in rest)]
        config["modules_to_save"] = said or None
    if not any(key.endswith(".bias") for key in rest):
        config["bias"] = "none"
    return config, out


def of_layers(
    tensors: Mapping[str, Tensor], parameters: Mapping[str, Tensor], sites: Collection[str]
) -> dict[str, Tensor]:
    """The tensors with a bias that goes by two names under that of its layer alone, as in BERT's head of words."""
    held: dict[int, list[str]] = {}
    for key in (k for k in tensors if k.endswith(".bias") and own(k) in parameters):
        held.setdefault(id(parameters[own(key)]), []).append(key)
    out = dict(tensors)
    for keys in held.values():
        at = next((k for k in keys if own(k).rpartition(".")[0] in sites), None)
        for key in keys:
            if at and own(key).rpartition(".")[0] not in sites and torch.equal(tensors[key], tensors[at]):
                del out[key]
    return out


def _placed(key: str, mine: Tensor | None) -> None:
    """Refuses a copy of what this base lacks, with the real reason."""
    if mine is None and key.endswith((".base_layer.weight", ".base_layer.bias")):
        name = own(key).rpartition(".")[0]
        raise refusals.tensor(
            key, f"this base has no {name}, on which the adapter lies; open the host on the whole model, with its head"
        )


def own(key: str) -> str:
    """The base's parameter that a key copies, if it copies one."""
    return key.removeprefix(peft.PREFIX).replace(".token_adapter.base_layer.", ".").replace(".base_layer.", ".")


def _equal(value: Tensor, mine: Tensor) -> bool:
    """Whether both are one, in the coarser precision of the two: a bfloat16 model's copy in a float32 one's is it."""
    if value.shape != mine.shape or mine.is_meta:
        return False
    mine = mine.detach().cpu()
    if torch.equal(value.to(mine.dtype), mine):
        return True
    return any(torch.equal(mine.to(d).float(), value.float()) for d in (torch.bfloat16, torch.float16))
