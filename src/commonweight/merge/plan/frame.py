"""Which blocks slices are of, where a model has several stacks; and which other tensors come before and after them."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from ...core import CommonweightError, counted
from ..architecture.blank import NoModel, blank
from ..architecture.naming import homes
from ..architecture.stacks import Stack, lengths, place, stacks, text_part

_LAST = re.compile(
    r"(^|\.)(lm_head|lm_loss|embed_out|head|ln_f|norm_f|final_layer_?norm|final_norm|post_layer_?norm|score|classifier"
    r"|cls|pooler|project_out|qa_outputs|predictions|final_logits_bias)(\.|$)"
)
_FIRST = re.compile(r"embed|position|(^|\.)(wte|wpe|shared)(\.|$)")
_TOWER = re.compile(r"vision|visual|image|audio|speech|projector|connector|multi_modal|patch")
_NO_LAYERS = re.compile(r"conv|postnet|predictor|global_transformer|upsampl")


class Frame(NamedTuple):
    """prefixes: of the stacks that slices are of. stacks: what the config says of them, () where names alone told.
    last: tensors outside of them that come after the blocks; the others come before."""

    prefixes: tuple[str, ...]
    stacks: tuple[Stack, ...]
    last: frozenset[str]
    notices: tuple[str, ...] = ()

    def block(self, name: str) -> int | None:
        """The number of its block, if that is of a stack that slices are of."""
        at = place(name)
        return at[1] if at is not None and at[0] in self.prefixes else None


def frame(config: Mapping[str, Any] | None, names: Iterable[str]) -> Frame:
    """names: of the model whose config this is. With several stacks: the language model's, where a model has one beside
    others; else all of one depth, as an encoder's and a decoder's. Raises: CommonweightError where that leaves several.
    """
    names = sorted(names)
    every = [p for p, n in lengths(names).items() if n > 1]
    try:
        if config is None:
            raise NoModel("there is no config.json")
        told = stacks(config, names)
        chosen = _chosen(told, text_part(config))
        order = _order(config, names)
    except NoModel as e:
        chosen, order = (), {}
        prefixes = _by_names(names)
        notices = (f"{e}; that slices are of {_said(prefixes)} is told by names, and the result's config not checked",)
    else:
        prefixes = tuple(s.prefix for s in chosen)
        notices = ()
    if not prefixes:
        raise CommonweightError("slices: no stack of blocks in the model, by its names and its config.json")
    others = [p for p in every if p not in prefixes]
    if others and chosen:
        notices += (f"slices are of {_said(prefixes)}; {_said(others)} are the first slice's, whole",)
    last = frozenset(n for n in names if (at := place(n)) is None or at[0] not in prefixes)
    return Frame(prefixes, chosen, frozenset(n for n in last if _after(n, prefixes, others, order)), notices)


def _said(prefixes: Iterable[str]) -> str:
    return ", ".join(p.rstrip(".") or "its blocks" for p in prefixes)


def _chosen(told: tuple[Stack, ...], text: tuple[str, ...]) -> tuple[Stack, ...]:
    parts = {s.part for s in told}
    part = text if text in parts else next(iter(parts), ()) if len(parts) == 1 else None
    if part is None:
        raise CommonweightError(
            f"slices: which of {_said(s.prefix for s in told)} they are of cannot be told: the config has no text part"
        )
    mine = tuple(s for s in told if s.part == part)
    mine = tuple(s for s in mine if not _NO_LAYERS.search(s.prefix)) or mine
    if len({s.length for s in mine}) > 1:
        said = " and ".join(f"{s.prefix.rstrip('.')} has {counted(s.length, 'block')}" for s in mine)
        raise CommonweightError(f"slices: {said}; slices apply to all stacks alike, so these must have one depth")
    return mine


def _by_names(names: Iterable[str]) -> tuple[str, ...]:
    found = lengths(names)
    numbers: dict[str, set[int]] = {}
    for at in filter(None, map(place, names)):
        numbers.setdefault(at[0], set()).add(at[1])
    whole = {p: n for p, n in found.items() if len(numbers[p]) == n}
    text = {p: n for p, n in whole.items() if not _TOWER.search(p)} or whole
    return tuple(p for p, n in text.items() if n == max(text.values()))


def _order(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, float]:
    """Name in the file -> its place among the model's tensors; the table of words that come in before all, a head
    after."""
    model = blank(config)
    there: dict[str, float] = {n: i for i, n in enumerate(model.state_dict())}
    for get, at in (("get_input_embeddings", -math.inf), ("get_output_embeddings", math.inf)):
        try:
            found = getattr(model, get)()
        except (AttributeError, NotImplementedError, TypeError):
            continue
        mine = next((n for n, m in model.named_modules() if m is found), None)
        there.update({n: at for n in there if mine is not None and n.rpartition(".")[0] == mine})
    return {n: there[h.module] for n, h in homes(model, names).items()}


def _after(name: str, prefixes: Iterable[str], others: Iterable[str], order: Mapping[str, float]) -> bool:
    mine, theirs = (max((_common(name, p) for p in ps), default=-1) for ps in (prefixes, others))
    if theirs > mine:
        return False  # of a tower that stays whole
    if math.isinf(at := order.get(name, 0)):
        return at > 0
    if _LAST.search(name):
        return True
    if _FIRST.search(name) or _TOWER.search(name):
        return False
    if name not in order:
        return True
    near = max(prefixes, key=lambda p: _common(name, p))
    return at > min((i for n, i in order.items() if n.startswith(near)), default=0)


def _common(name: str, prefix: str) -> int:
    """How many names of modules the two have in common, from the front."""
    n = 0
    for a, b in zip(name.split("."), prefix.split(".")):
        if a != b:
            break
        n += 1
    return n
