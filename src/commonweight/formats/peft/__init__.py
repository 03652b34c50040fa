"""PEFT's adapter folders, both ways: pure functions over its config and tensors. One file per family of methods."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from torch import Tensor

from ...core import Site
from ..adapter import Adapter, Frozen, fits
from . import (
    adalora,
    folder,
    heads,
    keys,
    kinds,
    layout,
    lora,
    low_rank,
    plain,
    prompts,
    randlora,
    refusals,
    rotations,
    scales,
    started,
    tinylora,
    tokens,
    vb_lora,
    vera,
)
from .common import PREFIX, Native, Subject, short


class Family(NamedTuple):
    """One peft_type. methods: ours that `write` puts in PEFT's own format."""

    read: Callable[[Mapping[str, Any], Mapping[str, Tensor], Mapping[str, Site], Frozen], Adapter]
    write: Callable[[Subject], Native]
    methods: tuple[str, ...]
    conv1d: bool = True  # whether PEFT 0.21.2 has the method for GPT-2's transposed layers
    upright: tuple[str, ...] = ()  # of a family that has them, the methods that PEFT has for nn.Linear alone
    takes: Callable[[Mapping[str, Any]], bool] | None = None  # where PEFT computes what our reader does not take


def _plain(kind: plain.Plain, conv1d: bool = False) -> Family:
    return Family(kind.read, kind.write, (kind.method,), conv1d, takes=kind.takes)


FAMILIES: dict[str, Family] = {
    "ADALORA": Family(adalora.read, adalora.write, ("adalora",), takes=adalora.takes),
    "BOFT": Family(rotations.read_boft, rotations.write_boft, ("boft",), conv1d=False),
    "C3A": _plain(plain.C3A),
    "DELORA": _plain(plain.DELORA),
    "FOURIERFT": _plain(plain.FOURIERFT, conv1d=True),
    "WAVEFT": _plain(plain.WAVEFT, conv1d=True),
    "GRALORA": _plain(plain.GRALORA, conv1d=True),
    "HIRA": _plain(plain.HIRA, conv1d=True),
    "HRA": _plain(plain.HRA),
    "IA3": Family(scales.read_ia3, scales.write_ia3, ("ia3",)),
    "LN_TUNING": Family(scales.read_norms, scales.write_norms, ("lntuning",)),
    "LOHA": _plain(plain.LOHA),
    "LOKR": _plain(plain.LOKR),
    "LORA": Family(lora.read, lora.write, ("lora", "dora", "eva", "pissa", "olora", "lori"), upright=("olora",)),
    "MISS": _plain(plain.MISS),
    "OFT": Family(rotations.read_oft, rotations.write_oft, ("oft",), conv1d=False),
    "PREFIX_TUNING": Family(prompts.read_prefix, prompts.write_prefix, ("prefix-tuning",)),
    "PROMPT_TUNING": Family(prompts.read_prompt, prompts.write_prompt, ("prompt-tuning",)),
    "P_TUNING": Family(prompts.read_prompt, prompts.write_prompt, ("p-tuning",)),
    "RANDLORA": Family(randlora.read, randlora.write, ("randlora",)),
    "ROAD": Family(scales.read_road, scales.write_road, ("road",), conv1d=False),
    "VBLORA": Family(vb_lora.read, vb_lora.write, ("vb-lora",)),
    "TINYLORA": Family(tinylora.read, tinylora.write, ("tinylora",)),
    "TRAINABLE_TOKENS": Family(tokens.read, tokens.write, ("tokens",)),
    "VERA": Family(vera.read, vera.write, ("vera",)),
}


def read(config: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Mapping[str, Site], base: Frozen) -> Adapter:
    """An adapter from PEFT's config and tensors. sites: every site of the base by name.

    Raises: CommonweightError for whatever is not understood, naming it.
    """
    kind = str(config["peft_type"])
    if kind not in FAMILIES:
        raise refusals.kind(kind)
    return FAMILIES[kind].read(config, tensors, sites, base)


def through(config: Mapping[str, Any], fitted: bool = False) -> bool:
    """Whether PEFT itself must compute with an adapter: its type, an option or a kind of LoRA is unknown here.

    fitted: it is to become a LoRA within a tolerance.
    """
    kind = config["peft_type"]
    if kind == "LORA":
        return any(config.get(o) for o in kinds.THROUGH_LORA)
    takes = FAMILIES[kind].takes if kind in FAMILIES else None
    return kind in kinds.THROUGH or (takes is not None and (fitted or not takes(config)))


def hindrance(method: str, transposed: str | None) -> str | None:
    """Why PEFT has no format of its own for a tenant; None where it has. transposed: a site that is a Conv1D."""
    family = next((f for f in FAMILIES.values() if method in f.methods), None)
    if family is None:
        known = sorted(m for f in FAMILIES.values() for m in f.methods)
        return (
            f"{method} has no format of its own in PEFT (native=True knows {', '.join(known)}); "
            "leave native out to export it as plain LoRA"
        )
    if transposed and (not family.conv1d or method in family.upright):
        return f"{transposed}: PEFT has no {method} for Conv1D layers; leave native out for plain LoRA"
    return None


def kind_of(method: str) -> str:
    """The peft_type of our method's own format; "LORA" for one that has none."""
    return next((kind for kind, f in FAMILIES.items() if method in f.methods), "LORA")


def write(subject: Subject) -> Native:
    """A tenant in PEFT's own format for its method, which must have one."""
    return next(f for f in FAMILIES.values() if subject.method in f.methods).write(subject)


__all__ = [
    "FAMILIES",
    "PREFIX",
    "Adapter",
    "Family",
    "Frozen",
    "Native",
    "Subject",
    "fits",
    "folder",
    "heads",
    "hindrance",
    "keys",
    "kind_of",
    "kinds",
    "layout",
    "low_rank",
    "prompts",
    "read",
    "short",
    "started",
    "through",
    "write",
]
