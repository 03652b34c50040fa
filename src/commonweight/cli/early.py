"""What a command line says, looked at before torch is loaded: a mistake is told within a second.

What is let through here is looked at again where it is used.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..adapt import beside as held
from ..adapt import names, standing
from ..adapt.hub import check as check_hub
from ..adapt.recipe import Recipe
from ..adapt.rows import kind_of
from ..adapt.yaml_file import Place, path_from
from ..adapt.yaml_file import parse as parse_yaml
from ..core import CommonweightError, build, parse, parse_count, unknown
from ..core.peers import OVER, TASKS, known, said
from ..core.peers import method as spelled
from ..exchange.local import Local, Rounds
from . import catalog


def method(
    name: str | None, options: Sequence[str] = (), given: Mapping[str, Any] | None = None, over: bool = False
) -> str | None:
    """The method's name here; one that says options stays as it is. options: ``name=value``; given: the same from a
    file, with their types. over: tenants are named for it to weigh."""
    there = catalog.methods()
    if name is None or not there:
        return name
    if over and (here := spelled(name, OVER)) in OVER:
        name, there = here, catalog.over()
    here, told = known(name, there), said(name)
    build(there[here], {**told, **(given or {}), **parse(there[here], list(options))})
    return name if told else here


def sharing(name: str | None, options: Sequence[str]) -> None:
    """A sharing method and its options."""
    there = catalog.sharing()
    if not there:
        return
    if name is not None and name not in there:
        raise unknown("sharing method", name, there)
    build(there[name or "recursive"], parse(there[name or "recursive"], list(options)))


def exchange(name: str | None, options: Sequence[str] = ()) -> None:
    """An exchange method and its options; of one whose adapter can be chosen, that adapter's too."""
    _carrying("exchange method", catalog.exchanges(), name, options)


def lifelong(name: str | None, options: Sequence[str] = (), given: Mapping[str, Any] | None = None) -> None:
    """The same of a lifelong method. given: options of a file, which may name the adapter."""
    _carrying("lifelong method", catalog.lifelong(), name, options, given)


def _carrying(
    what: str, there: Mapping[str, type], name: str | None, options: Sequence[str],
    given: Mapping[str, Any] | None = None,
) -> None:  # fmt: skip
    if not there or name is None:
        return
    if name not in there:
        raise unknown(what, name, there)
    fields = there[name].__dataclass_fields__  # type: ignore[attr-defined]
    own = [o for o in options if "options" not in fields or o.partition("=")[0] in fields]
    chosen = {"adapter": given["adapter"]} if given and "adapter" in given and "adapter" in fields else {}
    made = build(there[name], {**chosen, **parse(there[name], own)})
    if "options" in fields:
        method(made.adapter, [o for o in options if o not in own])


def exchange_recipe(numbers: Mapping[str, Any]) -> None:
    mine = {k: v for k, v in numbers.items() if k in Rounds.__dataclass_fields__}  # type: ignore[attr-defined]
    build(Rounds, mine)
    build(Local, {k: v for k, v in numbers.items() if k not in mine})


def form(name: str) -> None:
    """Of a shared model's folder."""
    one_of("form", name, ("peft", "remote-code", "albert", "unrolled"))


def amount(tokens: str | None) -> None:
    if tokens is not None:
        parse_count(tokens, "--tokens")


def merge_method(name: str | None) -> None:
    there = catalog.merges()
    if name is not None and there and name not in there:
        raise unknown("merge method", name, there)


def over(names: str | None, method: str | None, name: str, others: Mapping[str, Any]) -> None:
    """Tenants to stand on, and what does not go together with them."""
    told = {f"--{k.replace('_', '-')}": v for k, v in others.items()}
    standing.fits(method, standing.listed(names or ()), [name], told)


def task(name: str | None, there: Sequence[str] = names.TASKS) -> str | None:
    """By PEFT's names too: SEQ_CLS, CAUSAL_LM."""
    here = TASKS.get(str(name).lower(), name)
    return one_of("task", here, there)


def dtype(name: str | None) -> None:
    one_of("dtype", name, names.DTYPES)


def preference(task: str, reward: str | None, resume: bool) -> None:
    """What the tasks of TRL want, and what only one of them has."""
    if task in names.PREFERENCES and find_spec("trl") is None:
        raise CommonweightError(f"--task {task} needs TRL: pip install commonweight[trl]")
    if task in names.PREFERENCES and resume:
        raise CommonweightError(f"--resume: the task {task} runs in TRL's loop, whose state is not kept")
    if task == "grpo" and reward is None:
        raise CommonweightError("--task grpo needs a reward: --reward MODULE:FUNCTION")
    if task != "grpo" and reward is not None:
        raise CommonweightError(f"--reward {reward}: the task {task} has none; --task grpo is trained by it")


def optimizer(name: str | None) -> None:
    one_of("optimizer", name, names.OPTIMIZERS)


def side(name: str | None) -> None:
    one_of("truncation side", name, names.SIDES)


def log(to: str | None) -> None:
    if to is None:
        return
    name = to.partition(":")[0]
    one_of("log", name, names.LOGS)
    if find_spec(name) is None:
        raise CommonweightError(f"--log-to {name} needs it: pip install {name}")


def hub(repo: str | None, out: object) -> None:
    if repo is None:
        return
    check_hub(repo)
    if out is None:
        raise CommonweightError(f"--push-to-hub {repo}: the tenant's file is uploaded; name it with --out")


def codec(name: str | None) -> None:
    one_of("codec", None if name is None else name.partition(":")[0], names.CODECS)


def beside(modules: str | None, rows: str | None) -> None:
    """What a tenant holds beside its method."""
    held.modules(modules)
    held.rows(rows)


def device(name: str | None) -> None:
    if name is not None and not re.fullmatch(names.DEVICES, name):
        raise CommonweightError(f"device {name!r}: wanted auto, cpu, cuda, cuda:1 or mps")


def quantize(name: str | None) -> None:
    one_of("quantize", name, names.QUANTISED)


def loading(shard: bool, device_map: str | None, liger: bool) -> None:
    if shard and os.environ.get("WORLD_SIZE", "1") == "1":
        raise CommonweightError(
            "--shard: there is one process, which holds the whole base; start several: torchrun --nproc-per-node 2 -m "
            "commonweight adapt ... --shard"
        )
    if device_map is not None and device_map not in names.DEVICE_MAPS and not device_map.endswith(".json"):
        try:
            json.loads(device_map)
        except ValueError as e:
            raise CommonweightError(
                f"--device-map {device_map}: wanted {', '.join(names.DEVICE_MAPS)}, or a JSON object of modules and "
                "places, or a file with one"
            ) from e
    if liger and find_spec("liger_kernel") is None:
        raise CommonweightError("--liger needs Liger's kernels: pip install liger-kernel")


def recipe(numbers: Mapping[str, Any]) -> None:
    build(Recipe, numbers)


def rows(*sources: str | None) -> None:
    for source in sources:
        if source is not None and not _fraction(source):
            kind_of(source)


def model(name: str, task: str | None = None) -> None:
    """A folder without a config, and a path that is not there; what may be a name on the hub is let through."""
    path = Path(name)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        raise CommonweightError(f"model {name!r} is a YAML file; wanted a model's folder or its name on the hub")
    if path.exists():
        places = ("config.json", "adapter_config.json", "adapter/adapter_config.json")  # the latter of a shared model
        if not any((path / name).is_file() for name in places):
            raise CommonweightError(f"model {name!r}: no config.json there; wanted a folder that save_pretrained wrote")
    elif name[:1] in "./~" or name.count("/") > 1:
        raise CommonweightError(
            f"model {name!r} cannot be read{f' for the task {task!r}' if task else ''}: no such folder; give a folder "
            "with config.json and model.safetensors, or a name on the hub"
        )


def models(inputs: Sequence[str]) -> None:
    """Of those that can be nothing but a file or a folder: a recipe, a file of weights, a path with a dot in front."""
    for text in inputs:
        path = Path(text.partition("+")[0])
        if path.suffix in (".yaml", ".yml") and not path.exists():
            raise CommonweightError(f"{path}: no such recipe")
        alone = path.suffix == ".safetensors" or (text[:1] in "./~" and ":" not in text)
        if alone and not path.exists():
            raise CommonweightError(f"{path}: no such file or folder")


def tenants(path: Path) -> None:
    """A file of several tenants: its syntax, its method, its numbers, and the files of rows that it names."""
    body, lines = parse_yaml(path, "tenants:")
    at, entries = Place(path, lines), body.get("tenants")
    where: tuple[str, ...] = ("method",)
    try:
        name, options = body.get("method", "mos"), body.get("options") or {}
        if isinstance(name, str) and isinstance(options, dict):
            over = "over" in body
            known(name, (catalog.over() if over and name in OVER else catalog.methods()) or [name])
            where = ("options",)
            method(name, (), options, over)
        where = ("recipe",)
        if isinstance(body.get("recipe", {}), dict):
            recipe(body.get("recipe", {}))
    except CommonweightError as e:
        raise at.error(where, str(e)) from e
    _rows_named(at, "tenants", entries)


def stream(path: Path, name: str | None, options: Sequence[str], resume: bool) -> None:
    """A stream's file, and what the command line says over it. name, options: those of the command line. resume: files
    of tasks that were learned need not be there."""
    body, lines = parse_yaml(path, "tasks:")
    at, said = Place(path, lines), body.get("method")
    given = body.get("options") if name in (None, said) else None
    if name is None and isinstance(said, str):
        try:
            lifelong(said)
        except CommonweightError as e:
            raise at.error(("method",), str(e)) from e
    name = name or (said if isinstance(said, str) else "sequential")
    lifelong(name, options, given if isinstance(given, dict) else None)
    if not resume:
        _rows_named(at, "tasks", body.get("tasks"))


def _rows_named(at: Place, key: str, entries: Any) -> None:
    """The files of rows that a file's tenants or tasks name. Raises: CommonweightError with the line."""
    for name, entry in entries.items() if isinstance(entries, dict) else ():
        for what in ("data", "dev", "eval"):
            if isinstance(entry, dict) and isinstance(entry.get(what), str):
                try:
                    rows(path_from(at.path.parent, entry[what]))
                except CommonweightError as e:
                    raise at.error((key, str(name), what), str(e)) from e


def files(paths: Iterable[str | Path], what: str = "file or folder") -> None:
    for path in paths:
        if not Path(path).exists():
            raise CommonweightError(f"{path}: no such {what}")


def one_of(what: str, name: str | None, there: Sequence[str]) -> str | None:
    if name is not None and name not in there:
        raise unknown(what, name, there)
    return name


def _fraction(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
