"""What a shared model would weigh and cost, from its layout alone: nothing is built, no weight is read."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from ..bind import Elastic, Guided, ProductKeys, Replace, Requantised, Streams, ThinHead, ThinTable
from ..builder import Anatomy, Layout, anatomy
from ..builder.kinds import form_of
from ..core import CommonweightError, Pool, Use, first_line
from ..host.names import said
from .ends import tied
from .make import unshared
from .methods import Method, available, layout_of, resolve

_VALUES = Replace, Requantised, Elastic  # binds that give a weight its value


class Cost(NamedTuple):
    """method: with its options. depth: blocks that are run. parameters, bytes: of the whole model, every pool once,
    without what is there for training alone.
    blocks: bytes of the blocks alone. flops: of one token, 2 for each number of a matrix that it meets, attention's
    scores aside. cache: bytes of keys and values for one token."""

    method: str
    depth: int
    parameters: int
    bytes: int
    blocks: int
    flops: int
    cache: int


class Anything(dict[str, tuple[float, ...]]):
    """Numbers of a survey that nobody made: sizes do not depend on them."""

    def __init__(self, depth: int):
        super().__init__()
        self.depth = depth

    def __missing__(self, key: str) -> tuple[float, ...]:
        return (0.0,) * self.depth


def plan(model: nn.Module | str | Path, methods: Mapping[str, list[dict[str, Any]]] | None = None) -> list[Cost]:
    """Every method at several sizes, the original first; nothing runs.

    model: a model, on the meta device too, or a folder of which config.json alone is read. methods: {name: a list of
    options} in place of all. Raises: CommonweightError for a model without one list of blocks.
    """
    whole: Any = on_meta(model) if isinstance(model, str | Path) else model
    about = anatomy(whole)
    out = [cost(whole, about, "original", original(about))]
    asked = methods or {n: m.sizes(about.depth) for n, m in available().items()}
    for name, sizes in asked.items():
        for options in sizes if methods is not None else _different(sizes):
            method, config = resolve(name, options)
            try:
                layout = laid_out(method, about, config)
            except CommonweightError:
                if methods is not None:
                    raise
                continue  # this model has no place for it
            told = " ".join([name, *(f"{k}={_short(v)}" for k, v in options.items())])
            out.append(cost(whole, about, told, layout))
    return out


def _different(sizes: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of small models two sizes of a method may be one."""
    return [s for i, s in enumerate(sizes) if s not in sizes[:i]]


def laid_out(method: Method, about: Anatomy, config: Any) -> Layout:
    return layout_of(method, about, config, Anything(about.depth))


def original(about: Anatomy) -> Layout:
    from ..builder import tied as plain

    return plain(about, range(about.depth), lambda at, weight: None)


def cost(model: nn.Module, about: Anatomy, name: str, layout: Layout) -> Cost:
    depth, layout = len(layout.like), layout.settled()
    left = [w for w in about.rest if w.name not in gone(about, layout)]
    rest = sum(prod(w.shape) for w in left)
    rest_bytes = sum(prod(w.shape) * getattr(torch, w.dtype).itemsize for w in left)
    return Cost(
        name, depth, rest + layout.count(), rest_bytes + layout.nbytes, layout.within().nbytes,
        flops(model, about, layout), int(held(layout) * cache_of_a_layer(model, about)),
    )  # fmt: skip


def gone(about: Anatomy, layout: Layout) -> set[str]:
    """Weights outside of the blocks that the model has no more. A table that the output layer has too stays there."""
    found = [(u.site[1:], form_of(u)) for u in layout.plan.uses if u.site.startswith(".")]
    sites = {site for site, form in found if form is not None and "weight" in form.without}
    kept = about.head not in sites and tied(about)
    return {f"{s}.weight" for s in sites if not (kept and s == about.table)}


def held(layout: Layout) -> float:
    """How many layers' keys and values a token has."""
    left_out = sum(1 - s for u in layout.plan.uses for what, s in _shares(u.bind) if not what)
    return streams(layout) * (
        len(layout.like) - left_out + sum(getattr(u.bind, "more_cache", 0.0) for u in layout.plan.uses)
    )


def streams(layout: Layout) -> int:
    """How many times the blocks run for each row."""
    return next((u.bind.n for u in layout.plan.uses if isinstance(u.bind, Streams)), 1)


def flops(model: Any, about: Anatomy, layout: Layout) -> int:
    """Of one token: every matrix at every depth, by the share of tokens that it is meant to run for, and the head.
    What it takes to make a weight of others is paid once for all tokens of a batch, and not counted."""
    shapes = {f"{at}.{w.name}": w.shape for at, like in enumerate(layout.like) for w in about.blocks[like]}
    taken = [(f"{u.site}{what and '.'}{what}.", share) for u in layout.plan.uses for what, share in _shares(u.bind)]
    total = 0.0
    for use in layout.plan.uses:
        part = prod(share for home, share in taken if use.site.startswith(home))
        part *= 1 if use.site.startswith(".") else streams(layout)
        total += part * sum(2 * prod(s) for s in _matrices(use, layout.plan.pools, shapes.get(use.site)))
    head: Any = getattr(model, "get_output_embeddings", lambda: None)()
    if head is None or any(isinstance(u.bind, ThinHead) for u in layout.plan.uses):
        return int(total)
    return int(total) + 2 * head.weight.numel()


def _shares(bind: Any) -> list[tuple[str, float]]:
    return [bind.taken] if hasattr(bind, "taken") else []


def _matrices(use: Use, pools: Mapping[str, Pool], whole: tuple[int, ...] | None) -> list[tuple[int, ...]]:
    """Shapes of the matrices that a token meets there. whole: of the weight itself, where the site is one."""
    if whole is not None and isinstance(use.bind, _VALUES):  # whatever it is read from
        return [whole] if len(whole) == 2 else []
    if isinstance(use.bind, Guided):  # its dense weight is gone after training
        return [pools[use.reads[n].pools[0]].shape for n in "AB"]
    if isinstance(use.bind, ThinTable):  # of its table a token reads a row
        return [pools[use.reads["map"].pools[0]].shape]
    shapes = {slot: pools[n].shape for slot, read in use.reads.items() for n in read.pools}
    if isinstance(use.bind, ProductKeys):  # of its table a token reads a few rows
        rows = use.bind.heads * use.bind.k, shapes["values"][1]
        return [shapes["query"], (prod(shapes["keys"]), 1), rows]
    return [s for s in shapes.values() if len(s) == 2]


def cache_of_a_layer(model: Any, about: Anatomy) -> int:
    """Bytes of keys and values of one token; 0 of a model that generates nothing."""
    config = getattr(model, "config", None)
    if config is None or getattr(model, "get_output_embeddings", lambda: None)() is None:
        return 0
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    heads = getattr(text, "num_attention_heads", 1)
    size = said(text, "head_dim", 0) or about.width // heads
    kv = said(text, "num_key_value_heads", 0) or heads
    return 2 * kv * size * getattr(torch, about.blocks[0][0].dtype).itemsize


def on_meta(folder: str | Path) -> Any:
    """The model of a folder's config, without numbers."""
    import transformers as tf

    unshared(folder)
    try:
        config: Any = tf.AutoConfig.from_pretrained(str(folder))
        names = config.architectures or []
        kind = next((getattr(tf, n) for n in names if hasattr(tf, n)), None)
        with torch.device("meta"):
            if kind is not None:
                return kind(config).to(getattr(config, "dtype", None) or torch.float32)
            return tf.AutoModel.from_config(config)
    except (OSError, ValueError, KeyError) as e:
        raise CommonweightError(f"model {str(folder)!r} cannot be read: {first_line(e)}") from e


def _short(value: Any) -> str:
    if isinstance(value, tuple) and len(value) > 3:
        return f"[{value[0]},..]x{len(value)}"
    return str(list(value) if isinstance(value, tuple) else value).replace(" ", "")
