"""A config for other blocks than its own: how many, and every list that has an entry, or the number, of each."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from itertools import pairwise
from typing import Any, NamedTuple

from ...core import CommonweightError
from .blank import CONFIG, NoModel, known
from .stacks import Stack, part_of

_KINDS = ("layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type")  # of each layer, in any model
_FLAGS = ("no_rope_layers",)  # 0 or 1 for each layer, though it reads as a list of layers
_NUMBERS = re.compile(r"(layers|blocks|idxs|ids|indices|indexes)$")  # lists of layers by their numbers
_OTHER = re.compile(  # lists that are of something else, whatever their length
    r"token|architectures|image|patch|pool|kernel|stride|dilation|grid|out_features|out_ind|stage|feature_layer|label"
    r"|language|mean|std|resolution|section|factor|deepstack|backbone|merge"
)
_LEADING = (
    "first_k_dense_replace",
    "num_dense_layers",
    "moe_layer_start_index",
)  # how many of the first are another kind


class Block(NamedTuple):
    """A block of the result: the number that it has in a model of this config."""

    config: Mapping[str, Any]
    number: int


def resized(config: Mapping[str, Any], stacks: Sequence[Stack], blocks: Sequence[Block]) -> dict[str, Any]:
    """The config with the result's blocks in these stacks of it. What a class derives from a block's number
    (layer_types, where the file does not say them) is written out where it would come out otherwise.

    Raises: CommonweightError for blocks of which a list in their own config says nothing.
    """
    out: dict[str, Any] = deepcopy(dict(config))
    derived: dict[tuple[str, ...], dict[str, Any]] = {}
    every: dict[int, Mapping[str, Any]] = {}
    for b in blocks:
        every.setdefault(id(b.config), _whole(b.config))
    whole = _whole(config)
    for part in dict.fromkeys(s.part for s in stacks):
        at: Any = out
        for step in part:
            at = at.setdefault(step, {})
        lengths = {s.length for s in stacks if s.part == part}
        full = part_of(whole, part)
        mine = [Block(part_of(every[id(b.config)], part), b.number) for b in blocks]
        for key, value in full.items():
            new = _chosen(key, value, lengths, mine)
            if new is None:
                continue
            if at.get(key) is not None:
                at[key] = new
            else:
                derived.setdefault(part, {})[key] = new
        for s in stacks:
            if s.part == part:
                for key in _aliases(config, part, s.key, at):
                    at[key] = len(blocks)
        if "attention_types" in at and isinstance(kinds := full.get("attention_layers"), list):  # GPT-Neo's short form
            kinds = _chosen("attention_layers", kinds, lengths, mine)
            at["attention_types"] = [[[k], 1] for k in kinds]
    _written(out, derived)
    return out


def _whole(config: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        return known(config).to_dict()
    except NoModel:
        return config


def _chosen(key: str, value: Any, lengths: set[int], blocks: Sequence[Block]) -> Any:
    """The value for these blocks; None where it says nothing of blocks."""
    if key in _LEADING and type(value) is int:
        return next((i for i, b in enumerate(blocks) if b.number >= b.config.get(key, value)), len(blocks))
    listed = isinstance(value, list) or (isinstance(value, str) and "pattern" in key)
    if not listed or not value or _OTHER.search(key):
        return None
    if isinstance(value, list) and key not in _FLAGS and _NUMBERS.search(key) and _ascending(value, max(lengths)):
        lists: list[Any] = [b.config.get(key) or value for b in blocks]
        return [i for i, b in enumerate(blocks) if b.number in lists[i]]
    if len(value) not in lengths and key not in _KINDS:
        return None
    new = []
    for b in blocks:
        own = b.config.get(key)
        if not isinstance(own, list | str) or b.number >= len(own):
            n = len(own) if isinstance(own, list | str) else "no"
            raise CommonweightError(f"{CONFIG}: {key} has {n} entries, a slice has layer {b.number}; mend the config")
        new.append(own[b.number])
    return "".join(new) if isinstance(value, str) else new


def _ascending(value: list[Any], n: int) -> bool:
    return all(type(v) is int and 0 <= v < n for v in value) and all(a < b for a, b in pairwise(value))


def _aliases(config: Mapping[str, Any], part: Sequence[str], key: str, at: Mapping[str, Any]) -> list[str]:
    """The key, and other names of it that the file uses too."""
    try:
        read: Any = known(config)
        for step in part:
            read = getattr(read, step)
        also = [a for a, real in type(read).attribute_map.items() if real == key and a in at]
    except (NoModel, AttributeError):
        also = []
    return [key, *also]


def _written(out: dict[str, Any], derived: Mapping[tuple[str, ...], Mapping[str, Any]]) -> None:
    """Writes what the class would derive otherwise for the new number of blocks."""
    if not derived:
        return
    try:
        now = known(out).to_dict()
    except NoModel:  # it wants them said
        now = {}
    for part, wanted in derived.items():
        at: Any = out
        for step in part:
            at = at[step]
        here = part_of(now, part)
        at.update({k: v for k, v in wanted.items() if here.get(k) != v})
