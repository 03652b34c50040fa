"""A recipe as data, whichever file it was read from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from .settings import Select

Settings = Mapping[str, Any]
WEIGHT = "weight"  # among an input's settings
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}  # of the result


@dataclass(frozen=True)
class Input:
    """A model, or blocks first .. last - 1 of it. settings: its own, `weight` among them."""

    model: str
    settings: Settings = field(default_factory=dict)
    layers: tuple[int, int] | None = None


@dataclass(frozen=True)
class Slice:
    """Models merged with one another: whole, or as many blocks of each, which become the next blocks of the result."""

    inputs: tuple[Input, ...]
    settings: Settings = field(default_factory=dict)


@dataclass(frozen=True)
class Rule:
    """What differs for some tensors: a method, settings, weights; or `take`: the tensor of one model; or drop.

    drop false, not none: an earlier rule's drop does not hold.
    """

    select: Select
    method: str | None = None
    settings: Settings = field(default_factory=dict)
    weights: tuple[Any, ...] | None = None
    take: str | None = None
    drop: bool | None = None


@dataclass(frozen=True)
class Vocabulary:
    """source: "base", "union" or a model. tokens: token -> model whose embedding it has. multiple: rows are padded,
    with zeros or (mean) with the mean of all rows.
    """

    source: str
    tokens: Mapping[str, str] = field(default_factory=dict)
    multiple: int = 1
    mean: bool = False


@dataclass(frozen=True)
class Expert:
    """A dense model whose feed-forward networks become one expert of each layer. positive, negative: prompts that tell
    what it is for, and what not. scale: of its last projection."""

    model: str
    positive: tuple[str, ...] = ()
    negative: tuple[str, ...] = ()
    scale: float = 1.0


@dataclass(frozen=True)
class Mixture:
    """Dense models as a mixture of experts. gate: where the routers' rows come from; active: experts of a token; rest:
    whose the other tensors are, `base` or `mean`; seed: of random gates."""

    experts: tuple[Expert, ...]
    shared: Expert | None = None
    gate: str = "hidden"
    active: int = 2
    rest: str = "base"
    seed: int = 0


@dataclass(frozen=True)
class Recipe:
    """method over slices. settings: for all; defaults: in place of the methods' own, where nothing else is said; text:
    the file, or what it would be; notices: what is read but not used.

    roles: the base is listed among the inputs too, and the method decides whether it is merged (as in mergekit).
    mixture: the slices' inputs are not merged, but stand side by side.
    """

    method: str
    slices: tuple[Slice, ...]
    base: str | None = None
    settings: Settings = field(default_factory=dict)
    rules: tuple[Rule, ...] = ()
    dtype: str | None = None
    vocabulary: Vocabulary | None = None
    roles: bool = False
    defaults: Settings = field(default_factory=dict)
    folder: str = "."
    text: str = ""
    notices: tuple[str, ...] = ()
    mixture: Mixture | None = None
