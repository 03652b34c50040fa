"""Which files of a folder are the model: those that transformers would load."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from ...core import CommonweightError
from .source import INDEX, config_of, read_json

WEIGHTS = "model.safetensors"
_SHARD = re.compile(r"(.+)-\d{5}-of-(\d{5})\.safetensors")
_NOT_MODELS = re.compile(r"consolidated|adapter_model|adapter\.|optimizer|scheduler|rng_state|training_")


class Weights(NamedTuple):
    """homes: tensor -> file, as an index has it, where there is one. unread: other files of weights in the folder."""

    files: list[Path]
    homes: Mapping[str, str] = MappingProxyType({})
    unread: tuple[str, ...] = ()


def weights_of(path: Path, label: str) -> Weights:
    """The safetensors files of a model, in the order in which transformers looks: what its config names
    (transformers_weights), model.safetensors, the files of its index; where there is none of them, every file but
    another format's (Mistral's consolidated.safetensors) and an adapter's.

    Raises: CommonweightError for a model that is not there as a whole.
    """
    if not path.exists():
        raise CommonweightError(f"{label}: no such file or folder")
    if not path.is_dir():
        return _complete(Weights([path]), label)
    every = sorted(path.glob("*.safetensors"))
    named = config_of(path).get("transformers_weights")
    if named is not None and (not isinstance(named, str) or Path(named).name != named or not (path / named).is_file()):
        raise CommonweightError(f"{label}: config.json names its weights {named!r}, which is not a file of this folder")
    first = next((n for n in ([named] if named else [WEIGHTS, INDEX]) if (path / n).exists()), None)
    if first is not None and first.endswith(".json"):
        found = _indexed(path, first, label)
    elif first is not None:
        found = Weights([path / first])
    else:
        mine = [f for f in every if not _NOT_MODELS.match(f.name)]
        found = Weights(mine or every)
    if not found.files:
        raise CommonweightError(
            f"{label}: no safetensors file in this folder; convert the weights to safetensors first"
        )
    read = {f.name for f in found.files}
    others = [f.name for f in every if f.name not in read]
    if first == WEIGHTS and (path / INDEX).exists():
        others.append(INDEX)
    return _complete(found._replace(unread=tuple(others)), label)


def _indexed(path: Path, index: str, label: str) -> Weights:
    try:
        homes = read_json(path / index)["weight_map"]
        names = sorted(set(homes.values()))
        files = [path / name for name in names]
    except (CommonweightError, KeyError, TypeError, AttributeError) as e:
        raise CommonweightError(f"{label}: {index} is damaged: {e}") from e
    for file, name in zip(files, names):
        if name != file.name:
            raise CommonweightError(f"{label}: {index} names {name!r}; wanted the name of a file in this folder")
        if not file.exists():
            raise CommonweightError(f"{label}: {index} names {name}, which is not there")
    return Weights(files, homes)


def _complete(found: Weights, label: str) -> Weights:
    """Raises: CommonweightError where a file is one of several, and another of them is missing."""
    there = {f.name for f in found.files}
    for one in filter(None, map(_SHARD.fullmatch, sorted(there))):
        stem, count = one[1], one[2]
        for i in range(1, int(count) + 1):
            if (name := f"{stem}-{i:05}-of-{count}.safetensors") not in there:
                raise CommonweightError(
                    f"{label}: {one[0]} is one of {int(count)} files, and {name} is not there; give the folder with "
                    "all of them"
                )
    return found
