"""A YAML file in the place of flags, for one tenant."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from ..adapt.standing import listed
from ..adapt.yaml_file import Place, parse, path_from, shown
from ..core import CommonweightError, peers, unknown
from . import catalog
from .said import Said

PATHS = ("out", "store")
SWITCHES = ("overwrite", "gradient_checkpointing", "resume", "dry_run", "no_header", "packing", "bf16")
NUMBERS = (
    "epochs", "batch_size", "accumulate", "eval_batch_size", "lr", "max_length", "patience", "seed", "checkpoint_every",
    "lora_plus", "beta", "generations", "completion_length", "rows_shown",
)  # fmt: skip


def filled(path: Path, said: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """(flags, the method's options) of a file, under what the command line said.

    Keys: the flags' names, ``model``, ``data``, ``options``; also PEFT's and transformers' names of the same. Paths
    count from the file's folder. Raises: CommonweightError with the file, the line and the key.
    """
    body, lines = parse(path, "model: and data:")
    at = Place(path, lines)
    flags = [f.name for f in fields(Said) if f.name not in ("option", "tenants", "stream")]
    out: dict[str, Any] = {}
    options = body.pop("options", {})
    if not isinstance(options, dict):
        raise at.error(("options",), f"is {shown(options)}; wanted keys and values, as in {{rank: 16}}")
    if "tenants" in body:
        raise at.error(("tenants",), "a file of several tenants goes to --tenants: adapt MODEL --tenants FILE")
    if "tasks" in body or "stream" in body:
        key = "tasks" if "tasks" in body else "stream"
        raise at.error(
            (key,), "a file of tasks that come one after another goes to --stream: adapt MODEL --stream FILE"
        )
    options, of = dict(options), _options(said.get("method", body.get("method", "mos")))
    for key, value in body.items():
        plain = str(key).replace("-", "_")
        name = "eval_file" if plain == "eval" else peers.option(plain, flags)
        name = "eval_file" if name == "eval" else name
        if name not in flags:
            if peers.option(plain, of) not in of:
                known = [*(f if f != "eval_file" else "eval" for f in flags), "options"]
                raise at.error((str(key),), str(unknown("key", str(key), known)))
            options[plain] = value
            continue
        if name in out:
            raise at.error((str(key),), f"says {name.replace('_', '-')} a second time; say it once")
        try:
            out[name] = _value(name, str(key), value, path.parent)
        except CommonweightError as e:
            raise at.error((str(key),), str(e)) from e
    return {**{k: v for k, v in out.items() if v is not None and v is not False}, **said}, options


def _options(method: Any) -> set[str]:
    there = {**catalog.methods(), **catalog.over()}
    found = there.get(peers.method(str(method), there))
    return set() if found is None else {f.name for f in fields(found)}


def _value(name: str, key: str, value: Any, folder: Path) -> Any:
    if value is None:
        return None
    if name == "sites" and isinstance(value, list) and value and all(isinstance(v, str) for v in value):
        return "|".join(v if "*" in v else f"*.{v}" for v in value)  # names of modules, as PEFT takes them
    if name == "sites" and value == "all-linear":
        return None
    if name in ("modules_to_save", "token_rows") and isinstance(value, list | int) and not isinstance(value, bool):
        return ",".join(map(str, value if isinstance(value, list) else [value]))
    if name == "over":
        return ",".join(str(folder / o) if o.endswith(".safetensors") else o for o in listed(value))
    if name in SWITCHES:
        good, wanted = isinstance(value, bool), "true or false"
    elif name in NUMBERS:
        good, wanted = isinstance(value, int | float) and not isinstance(value, bool), "a number"
    elif name == "dev":
        good, wanted = isinstance(value, str | float) and not isinstance(value, bool), "a file or a fraction"
    else:
        good, wanted = isinstance(value, str), "a text"
    if not good:
        raise CommonweightError(f"is {shown(value)}; wanted {wanted}")
    if not isinstance(value, str):
        return str(value) if name == "dev" else value
    if name == "model" and (folder / value).is_dir():
        return str(folder / value)
    if name in ("data", "eval_file", "dev", "retain"):
        return path_from(folder, value)
    return folder / value if name in PATHS else value
