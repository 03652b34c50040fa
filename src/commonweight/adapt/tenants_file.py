"""A tenants file: YAML that says which tenants are trained together, on what and how.

common: sentences            # pools of scope `shared` are one for all; without it each tenant has its own
method: lotr
options: {rank: 16}
recipe: {epochs: 3, temperature: 2}
tenants:
  trec: {data: trec.train.tsv, dev: trec.dev.tsv, eval: trec.test.tsv}
  sst2: {data: sst2.train.tsv, dev: 0.1}
"""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

from ..core import CommonweightError, safe
from ..methods import either
from ..methods import get as get_method
from . import standing
from .job import Job, Source, checks, options_of
from .recipe import Recipe
from .yaml_file import Place, parse, path_from, shown


def read_tenants(path: str | Path) -> Job:
    """Reads a tenants file. Paths in it are relative to its folder; a name that is not a file is a name on the hub.

    Raises: CommonweightError with file, line and key, for invalid YAML, unknown or repeated keys, and values of a
    wrong type.
    """
    path = Path(path)
    body, lines = parse(path, "tenants:")
    at = Place(path, lines)
    at.keys((), body, [f.name for f in fields(Job)])
    if not isinstance(tenants := body.get("tenants"), dict) or not tenants:
        raise at.error(("tenants",), f"is {shown(tenants)}; wanted one or more names, each with data: FILE")
    sources = {}
    for name, entry in tenants.items():
        here = ("tenants", str(name))
        try:
            safe(name)
        except CommonweightError as e:
            raise at.error(here, str(e)) from e
        sources[name] = source(at, here, entry, path.parent)
    for key in ("common", "method", "task", "sites", "dtype", "quantize", "pool", "tokenizer"):
        at.kind(body, key, str, "a name")
    for key in ("shard", "liger"):
        at.kind(body, key, bool, "true or false")
    at.kind(body, "device_map", (str, dict), "auto, or modules and their places")
    for key in ("options", "recipe"):
        at.kind(body, key, dict, "keys and values, as in {rank: 16}")
    at.kind(body, "modules_to_save", (str, list), "names of modules, as in [embed_tokens, lm_head]")
    at.kind(body, "token_rows", (str, int, list, dict), "numbers of entries, as in [5, 7]")
    at.kind(body, "codec", (str, dict), "a codec's name, or patterns over pool names with one each")
    method, recipe = body.get("method", "mos"), body.get("recipe", {})
    options_of(at.told(("recipe",)), Recipe, recipe)
    try:
        over = standing.listed(body.get("over", ()))
    except CommonweightError as e:
        raise at.error(("over",), str(e)) from e
    if over:
        body["over"] = tuple(str(path.parent / o) if o.endswith(".safetensors") else o for o in over)
    try:
        config = (either if over else get_method)(method).config
    except CommonweightError as e:
        raise at.error(("method",), str(e)) from e
    options_of(at.told(("options",)), config, body.get("options", {}))
    given: dict[str, Any] = {**body, "tenants": sources}
    job = Job(**given)
    for keys, look in checks(job):
        try:
            look()
        except CommonweightError as e:
            raise at.error(keys, str(e)) from e
    return job


def source(at: Place, here: tuple[str, ...], entry: Any, folder: Path) -> Source:
    """One entry of a file that names tenants or tasks."""
    known = {f.name for f in fields(Source)}
    if not isinstance(entry, dict):
        raise at.error(here, f"is {shown(entry)}; wanted keys, as in {{data: train.tsv, dev: 0.1}}")
    at.keys(here, entry, known)
    if "data" not in entry:
        raise at.error(here, "has no data; wanted data: FILE")
    out: dict[str, Any] = {}
    for key, value in entry.items():
        if key == "no_header":
            good, wanted = isinstance(value, bool), "true or false"
        elif key == "dev":
            good, wanted = isinstance(value, str | float | int) and not isinstance(value, bool), "a file or a fraction"
        else:
            good, wanted = isinstance(value, str), "a name"
        if not good:
            raise at.error((*here, key), f"is {shown(value)}; wanted {wanted}")
        out[key] = (
            path_from(folder, str(value))
            if key in ("data", "eval", "retain") or (key == "dev" and isinstance(value, str))
            else value
        )
    if "dev" in out:
        out["dev"] = str(out["dev"])
    return Source(**out)
