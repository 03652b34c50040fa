"""Whole recipes tuned against an evaluation: methods, weights and options, each trial a merge on disk."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from ...commons import Commons
from ...core import CommonweightError
from ..inputs.models import FILES, from_hub
from ..output.folder import Result, write
from ..output.place import model_folder
from ..recipe import load, parse
from ..recipe.build import build
from ..sources.opened import stored
from ..stream import digest
from . import search

Body = Mapping[str, Any]
_NAMES = (
    "method",
    "merge_method",
    "dtype",
    "out_dtype",
    "compat",
)  # what they hold names no file


class Tuned(NamedTuple):
    """result: the folder of the best recipe's merge; recipe: what made it; found: every trial."""

    result: Result
    recipe: dict[str, Any]
    found: search.Found


def tune_recipe(
    recipe: str | Path | Body,
    space: search.Space,
    evaluate: Callable[[Path], float],
    out: str | Path,
    *,
    overwrite: bool = False,
    **how: Any,
) -> Tuned:
    """The recipe with the highest evaluate(folder of its merge), merged into `out`.

    space: a place in the recipe -> (low, high), or words with engine="optuna": {"options.density": (0.1, 0.9),
    "models.1.weight": (0, 1), "method": ("ties", "dare_ties")}. A place may be new.
    overwrite: a model that is at `out` is replaced, when the search has ended. how: as in `search.tune` (budget,
    engine, seed, run, start, about); the log is ``.OUT.search.json`` beside the output if not given, so a search that
    was killed goes on with the same call; it goes when the result is there.
    It goes on where the recipe, the content of
    every file that it names, and the name of `evaluate` are what they were; say in `about` what else a score depends on
    (``{"rows": digest}``).
    Over processes or machines `evaluate` is a function by name, and paths are the same everywhere.
    Cost: budget + 1 merges, and the bytes of one at a time for each that runs; budget evaluations; every input is read
    once more for its digest.
    """
    out = model_folder(Path(out), overwrite)
    search.check(space, **{k: how[k] for k in ("budget", "engine") if k in how})
    body, folder = (recipe, ".") if isinstance(recipe, Mapping) else _read(Path(recipe))
    filled(body, {n: v[0] for n, v in space.items()})  # a place that cannot be is told before any work
    model_folder(out, overwrite, [Path(folder), *(Path(folder) / name for name in _models(body, folder, space))])
    trial = partial(_trial, body, folder, out, evaluate)
    own = out.absolute().parent / f".{out.name}.search.json"
    about = {"evaluation": _name(evaluate), **depends(body, folder, space), **(how.pop("about", None) or {})}
    found = search.tune(trial, space, log=(log := how.pop("log", own)), about=about, **how)
    best = filled(body, found.best)
    result = write(build(_loaded(best, folder)), out, overwrite=overwrite)
    if log == own:
        own.unlink(missing_ok=True)
    return Tuned(result, best, found)


def depends(body: Body, folder: str, space: search.Space) -> dict[str, str]:
    """Digests of the recipe, and of every model and file that it, or a word of the space, names."""
    words = {w for place, v in space.items() if search.words(v) and place.split(".")[-1] not in _NAMES for w in v}
    out = {"recipe": digest.of_value(body)}
    for name in sorted({*_strings(body), *words}):
        for part in (name, *name.split("+")):
            for near in (Path(folder) / part, Path(part).expanduser()):
                if (content := _content(near)) is not None:
                    out[f"content of {part}"] = content
                    break
    for name in _models(body, folder, space):
        if f"content of {name}" not in out and name.count("/") == 1 and not name.startswith((".", "/", "~")):
            out[f"content of {name}"] = _content(from_hub(name)) or ""
    return out


def _content(path: Path) -> str | None:
    """Of a file, of a model's folder, of STORE:TENANT; None where there is no such thing. Names with a dot in front are
    no part of a model: the log of a search may be there."""
    if (there := stored(path)) is not None:
        got = Commons(there[0]).fetch(there[1])
        return digest.of_value([dict(got.header), dict(got.hashes)])
    if path.is_dir():
        files = sorted({f for pattern in FILES for f in path.glob(pattern) if f.is_file() and f.name[0] != "."})
        return digest.of_value([[f.name, digest.of_file(f)] for f in files])
    return digest.of_file(path) if path.is_file() else None


def _strings(value: Any) -> Iterator[str]:
    """Those that may name a file."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for k, v in value.items():
            if k not in _NAMES:
                yield from _strings(v)
    elif isinstance(value, list | tuple):
        for v in value:
            yield from _strings(v)


def _models(body: Body, folder: str, space: search.Space) -> set[str]:
    recipe = _loaded(filled(body, {n: v[0] for n, v in space.items()}), folder)
    named = [recipe.base or "", *(x.model for part in recipe.slices for x in part.inputs)]
    return {name.partition("+")[0] for name in named}


def _name(evaluate: Callable[..., Any]) -> str:
    while isinstance(evaluate, partial):
        evaluate = evaluate.func
    kind = evaluate if hasattr(evaluate, "__qualname__") else type(evaluate)
    return f"{kind.__module__}.{kind.__qualname__}"


def filled(body: Body, point: search.Point) -> dict[str, Any]:
    """The recipe with a point's values at their places. A model that is a name becomes {model: name} for its weight."""
    out = deepcopy(dict(body))
    for place, value in point.items():
        *way, last = place.split(".")
        at: Any = out
        for step in way:
            key: Any = int(step) if isinstance(at, list) and step.isdecimal() else step
            if isinstance(at, list) and (not isinstance(key, int) or key >= len(at)):
                raise CommonweightError(f"{place}: the recipe has no {step} there; it has 0 to {len(at) - 1}")
            if isinstance(at, dict):
                at.setdefault(key, {})
            if isinstance(at[key], str):
                at[key] = {"model": at[key]}
            at = at[key]
            if not isinstance(at, list | dict):
                raise CommonweightError(f"{place}: {step} is {at!r} in the recipe; nothing can be set in it")
        if isinstance(at, list) and (not last.isdecimal() or int(last) >= len(at)):
            raise CommonweightError(f"{place}: the recipe has no {last} there; it has 0 to {len(at) - 1}")
        spot: Any = int(last) if isinstance(at, list) else last
        at[spot] = value
    return out


def _trial(body: Body, folder: str, out: Path, evaluate: Callable[[Path], float], point: search.Point) -> float:
    mark = hashlib.blake2b(json.dumps(point, sort_keys=True).encode(), digest_size=8).hexdigest()
    at = out.absolute().parent / f".{out.name}.trial-{mark}"
    shutil.rmtree(at, ignore_errors=True)  # of a trial that was killed
    try:
        return float(evaluate(write(build(_loaded(filled(body, point), folder)), at).folder))
    finally:
        shutil.rmtree(at, ignore_errors=True)


def _loaded(body: Body, folder: str) -> Any:
    return replace(load(body), folder=folder)


def _read(path: Path) -> tuple[Body, str]:
    load(path)  # with its errors
    return parse(path, path.read_text(encoding="utf-8")), str(path.parent)
