"""Numbers of a checkpoint on disk by the names that a model has for its weights, whatever transformers renames, joins,
cuts or turns while it loads them."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from .names import named


class Lying(NamedTuple):
    """A tensor that is not in memory. at: places (n, dimensions) -> the numbers there (n,)."""

    shape: tuple[int, ...]
    at: Callable[[Tensor], Tensor]

    def flat(self, places: Tensor) -> Tensor:
        """places (n,): row after row."""
        none = places.new_zeros(len(places), 0)  # of a single number
        return self.at(torch.stack(torch.unravel_index(places, self.shape), 1) if self.shape else none)


def _files(folder: Path) -> list[Path]:
    """Those that transformers loads, where it can be told: the index's, else the one of the usual name, else all."""
    whole, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if whole.is_file():
        return [whole]
    if index.is_file():
        try:
            return sorted({folder / Path(n).name for n in json.loads(index.read_text("utf-8"))["weight_map"].values()})
        except (TypeError, AttributeError) as e:
            raise ValueError(f"{index}: it does not say which file each weight is in") from e
    return sorted(folder.glob("*.safetensors"))


class Weights(ABC):
    """A model's weights, where tensors of a checkpoint are known by name: what each is made of.

    Cost: at the first weight that is asked for, a look at each name.
    """

    def __init__(self, model: nn.Module):
        self._model, self._found = model, dict[str, Lying]()

    @property
    @abstractmethod
    def names(self) -> Mapping[str, Any]:
        """Of the checkpoint's tensors."""

    @abstractmethod
    def plain(self, key: str) -> Lying:
        """A tensor as it lies."""

    def by_tool(self, key: str, made: Made) -> Lying:
        """A weight that is neither stacked, joined, cut nor turned. Raises: LookupError."""
        raise LookupError(key)

    @cached_property
    def _ways(self) -> tuple[nn.Module | None, dict[str, Made]]:
        return _ways(self._model, [*self.names])

    @cached_property
    def _tied(self) -> dict[str, list[str]]:
        return _tied(self._model)

    def find(self, name: str, shape: tuple[int, ...]) -> Lying:
        """The weight of this name in the model, where it has this shape.

        Raises: LookupError where none, or more than one, can be it.
        """
        if name not in self._found:
            found = next((f for n in self._tied.get(name, [name]) if (f := self._find(n, shape)) is not None), None)
            if found is None:
                raise LookupError(name)
            self._found[name] = found
        return self._found[name]

    def _find(self, name: str, shape: tuple[int, ...]) -> Lying | None:
        parts = name.split(".")
        for i in range(max(1, len(parts) - 1)):  # whatever stands before it in the model or in the file
            tail = ".".join(parts[i:])
            if (key := _one(self._ways[1], tail)) is not None:
                return self._converted(key, self._ways[1][key]._replace(shape=shape))
            if (key := _one(self.names, tail)) is not None:
                return self.plain(key)
        return None

    def _converted(self, key: str, made: Made) -> Lying:
        sources = {k: [self.plain(n) for n in names] for k, names in made.sources.items()}
        ways = [_way(op) for op in made.operations]
        if None in ways:
            return self.by_tool(key, made)
        for op, way in zip(made.operations, ways):
            sources = way(sources, op, made)  # type: ignore[misc]
        found = [t for parts in sources.values() for t in parts]
        if len(found) != 1:
            raise LookupError(key)
        return found[0]


class Disk(Weights):
    """A folder's safetensors. Used as a context: files stay open within.

    Cost: of a weight, the numbers that are asked for. Only for what is neither stacked, joined, cut nor turned its
    tensors are read whole, by transformers' own conversion.
    """

    def __init__(self, folder: Path, model: nn.Module):
        super().__init__(model)
        self.files, self._open = _files(folder), ExitStack()

    @cached_property
    def names(self) -> dict[str, Any]:  # type: ignore[override]
        out = dict[str, Any]()
        for path in self.files:
            f = self._open.enter_context(safe_open(path, "pt"))
            out.update(dict.fromkeys(f.keys(), f))
        return out

    def __enter__(self) -> Disk:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def plain(self, key: str) -> Lying:
        t: Tensor = self.names[key].get_tensor(key)  # of the file as it is mapped: nothing is read yet
        return Lying(tuple(t.shape), lambda places: t[places.unbind(1)] if t.dim() else t.expand(len(places)))

    def by_tool(self, key: str, made: Made) -> Lying:
        """As transformers converts it."""
        tool, model = deepcopy(made.way), self._ways[0]
        for pattern, names in made.sources.items():
            for n in names:
                tool.add_tensor(made.first, n, pattern, lambda n=n: self.names[n].get_tensor(n))
        try:
            whole = tool.convert(made.first, model=model, config=getattr(model, "config", None))
        except Exception as e:  # of whatever kind its operations have
            raise LookupError(key) from e
        if (found := whole.get(key)) is None:
            raise LookupError(key)
        t: Tensor = found[0] if isinstance(found, list) else found
        return Lying(tuple(t.shape), lambda places: t[places.unbind(1)])


class Made(NamedTuple):
    """A weight that is made of others while loading. sources: pattern -> tensors on disk, in order. index: which of
    `count` weights it is that are made of these; first: the name of the first of them. shape: of the model's weight."""

    way: Any
    sources: dict[str, list[str]]
    first: str
    index: int
    count: int
    shape: tuple[int, ...] = ()

    @property
    def operations(self) -> Sequence[Any]:
        return getattr(self.way, "operations", ())


Sources = dict[str, list[Lying]]


def _merge(given: Sources, op: Any, made: Made) -> Sources:
    """Stacked along a new dimension."""

    def stack(parts: list[Lying]) -> Lying:
        shape = list(parts[0].shape)
        shape.insert(op.dim, len(parts))

        def at(places: Tensor) -> Tensor:
            rest = torch.cat([places[:, : op.dim], places[:, op.dim + 1 :]], 1)
            return _among(parts, places[:, op.dim], rest)

        return Lying(tuple(shape), at)

    return {k: [stack(parts)] for k, parts in given.items()}


def _join(given: Sources, op: Any, made: Made) -> Sources:
    parts = [p for k in made.way.source_patterns for p in given.get(k, ())]
    ends = torch.tensor([p.shape[op.dim] for p in parts]).cumsum(0)
    shape = list(parts[0].shape)
    shape[op.dim] = int(ends[-1])

    def at(places: Tensor) -> Tensor:
        which, moved = torch.searchsorted(ends, places[:, op.dim].contiguous(), right=True), places.clone()
        moved[:, op.dim] -= (ends - ends.diff(prepend=ends.new_zeros(1)))[which]
        return _among(parts, which, moved)

    return {"": [Lying(tuple(shape), at)]}


def _among(parts: list[Lying], which: Tensor, places: Tensor) -> Tensor:
    """The number at each place of that part of them that `which` says."""
    if bool((which == which[0]).all()):
        return parts[int(which[0])].at(places)
    found = torch.cat([parts[i].at(places[which == i]) for i in which.unique().tolist()])
    return found[which.argsort(stable=True).argsort()]


def _cut(given: Sources, op: Any, made: Made) -> Sources:
    (part,) = (p for parts in given.values() for p in parts)
    size = -(-part.shape[op.dim] // made.count)
    shape = list(part.shape)
    shape[op.dim] = min(size, part.shape[op.dim] - made.index * size)

    def at(places: Tensor) -> Tensor:
        moved = places.clone()
        moved[:, op.dim] += made.index * size
        return part.at(moved)

    return {"": [Lying(tuple(shape), at)]}


def _turn(given: Sources, op: Any, made: Made) -> Sources:
    def turn(part: Lying) -> Lying:
        if op.check_dims and part.shape == made.shape:
            return part
        order = [*range(len(part.shape))]
        order[op.dim0], order[op.dim1] = order[op.dim1], order[op.dim0]
        return Lying(tuple(part.shape[d] for d in order), lambda places: part.at(places[:, order]))

    return {k: [turn(p) for p in parts] for k, parts in given.items()}


def _way(op: Any) -> Callable[[Sources, Any, Made], Sources] | None:
    name = type(op).__name__
    if name == "Chunk" and getattr(op, "num_shards_attribute", None) is not None:
        return None
    return {"MergeModulelist": _merge, "Concatenate": _join, "Chunk": _cut, "Transpose": _turn}.get(name)


def _tied(model: nn.Module) -> dict[str, list[str]]:
    """Names of one weight that has several, itself first: on disk it may lie under any of them."""
    names: dict[int, list[str]] = {}
    for name, module in named(model, once=False):
        for key, p in module._parameters.items():
            if p is not None:
                names.setdefault(id(p), []).append(f"{name}.{key}" if name else key)
    return {n: [n, *(o for o in group if o != n)] for group in names.values() if len(group) > 1 for n in group}


def _one(names: Mapping[str, Any], tail: str) -> str | None:
    if tail in names:
        return tail
    found = [k for k in names if k.endswith(f".{tail}")]
    return found[0] if len(found) == 1 else None


def _ways(model: nn.Module, keys: list[str]) -> tuple[nn.Module | None, dict[str, Made]]:
    """(the model of transformers, how it makes its weights of these by its name for them)."""
    try:
        from transformers import PreTrainedModel
        from transformers.conversion_mapping import get_model_conversion_mapping
        from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
    except ImportError:  # as it was in transformers 5.0
        return None, {}
    inner: Any = next((m for _, m in named(model) if isinstance(m, PreTrainedModel)), None)
    if inner is None:
        return None, {}
    ways = get_model_conversion_mapping(inner)
    renamings: list[Any] = [w for w in ways if isinstance(w, WeightRenaming)]
    converters: list[Any] = [w for w in ways if isinstance(w, WeightConverter)]
    of = {pattern: c for c in converters for pattern in c.source_patterns}
    out: dict[str, Made] = {}
    for key in sorted(keys, key=dot_natural_key):
        new, pattern = rename_source_key(key, renamings, converters)
        if pattern is None:
            out[new] = Made(None, {"": [key]}, new, 0, 1)
            continue
        way = of[pattern]
        targets = way.target_patterns
        for i, target in enumerate(targets):
            name = new.replace(targets[0], target)
            made = out.get(name) or Made(way, {}, new, i, len(targets))
            out[name] = made
            made.sources.setdefault(pattern, []).append(key)
    return inner, out
