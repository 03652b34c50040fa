"""Whether what is read beside the models is theirs: by the names of the weights, and by their fingerprints."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from ...core import CommonweightError
from ..registry import Beside, limit
from ..sources.source import Source
from ..statistics import FINGERPRINT, Statistics, alike, fingerprint
from .work import Task


class _Pair(NamedTuple):
    """Statistics, and a model that they are used with; own: whether they are of this model alone."""

    found: Statistics
    source: Source
    kind: str
    own: bool


def check(tasks: Iterable[Task]) -> list[str]:
    """Notices, of files that do not say on which weights they were collected.

    Raises: CommonweightError for statistics of other weights than those that they are used with, for files that have no
    tensor of the model, and where a tensor's statistics would be those of another one.
    Cost: a few short reads for every tensor of every model that has statistics; nothing for methods without.
    """
    pairs: dict[tuple[int, int, str], _Pair] = {}
    for task in tasks:
        for i, found, kind, own in _beside(task):
            read = task.models[i]
            if own and read.name != task.at.name:
                raise CommonweightError(
                    f"{task.at.name}: it is {read.name} of {read.source.label}, and {found.label} would be read by the "
                    "name in the result; methods with statistics merge blocks where they are"
                )
            pairs.setdefault((id(found), id(read.source), kind), _Pair(found, read.source, kind, own))
    return [notice for pair in pairs.values() for notice in _one(pair)]


def _beside(task: Task) -> Iterator[tuple[int, Statistics, str, bool]]:
    """(model, its statistics, their kind, whether they are its alone)."""
    if task.job is None:
        return
    for name, (hint, _) in task.job.method.options().items():
        found, asked = task.job.config.get(name), limit(hint)
        if isinstance(asked, Beside) and found is not None:
            for i, one in enumerate(found if asked.each else [found]):
                yield i, one, asked.kind, asked.each


def _one(pair: _Pair) -> Iterator[str]:
    found, source, kind, own = pair
    names = [k.partition("/")[2] for k in found.shapes if k.startswith(f"{kind}/")]
    known = [n for n in names if n in source.shapes]
    if not known and (source.files or _renamed(names, source.shapes)):
        raise CommonweightError(
            f"{found.label}: its {kind} is of {names[0]} and others, of which {source.label} has none (it has "
            f"{next(iter(source.shapes), 'nothing')}); collect it on this model as it is merged, heads and wrappers too"
        )
    if not own:
        return
    told = found.header.get(FINGERPRINT)
    if not isinstance(told, Mapping):
        yield (
            f"{found.label}: does not say on which weights it was collected; that they are those of {source.label} was "
            "not checked"
        )
        return
    mapped, plain = getattr(source, "mapped", {}), getattr(source, "plain", source)
    for name in known:
        if name in mapped and kind == "fisher":
            raise CommonweightError(
                f"{name}: its rows are mapped by token, and {found.label} has its Fisher information in the order of "
                "before; merge without tokenizer"
            )
    here = fingerprint({n: plain.shapes[n] for n in known if n in told}, plain.flat)
    for name, numbers in here.items():
        if not _numbers(told[name]) or not alike(told[name], numbers):
            raise CommonweightError(
                f"{name}: {found.label} was collected on other weights than those of {source.label}; give each model "
                "its own file, in the order of the models, or collect it again"
            )


def _renamed(names: list[str], shapes: Mapping[str, Any]) -> bool:
    """Whether most would fit with a first name more or less. A state dict may be a part of a model, for which others
    are no sign of another one."""
    short = {n.partition(".")[2] for n in shapes}
    return 2 * sum(n.partition(".")[2] in shapes or n in short for n in names) >= len(names)


def _numbers(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, float | int) for v in value)
