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

import re
import reprlib
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..core import CommonweightError, first_line, safe, unknown
from ..methods import get as get_method
from .job import Job, Source, checks, options_of
from .recipe import Recipe
from .rows import KINDS

Lines = dict[tuple[str, ...], int]
MOST = 100_000  # values of a file, its aliases written out


def read_tenants(path: str | Path) -> Job:
    """The job of a tenants file; paths in it count from its folder, a name that is no file is one of the hub.

    Raises: CommonweightError with the file, the line and the key for what is no YAML, unknown, twice there or of
    another type than wanted.
    """
    path = Path(path)
    body, lines = _parse(path)
    at = _Place(path, lines)
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
        sources[name] = _source(at, here, entry, path.parent)
    for key in ("common", "method", "task", "sites", "dtype", "pool"):
        at.kind(body, key, str, "a name")
    for key in ("options", "recipe"):
        at.kind(body, key, dict, "keys and values, as in {rank: 16}")
    at.kind(body, "codec", (str, dict), "a codec's name, or patterns over pool names with one each")
    method, recipe = body.get("method", "mos"), body.get("recipe", {})
    options_of(at.told(("recipe",)), Recipe, recipe)
    try:
        config = get_method(method).config
    except CommonweightError as e:
        raise at.error(("method",), str(e)) from e
    options_of(at.told(("options",)), config, body.get("options", {}))
    job = Job(**{**body, "tenants": sources})
    for keys, look in checks(job):
        try:
            look()
        except CommonweightError as e:
            raise at.error(keys, str(e)) from e
    return job


def shown(value: Any) -> str:
    """A value for an error: aliases make one that is far longer than the file, so it is cut before it is written."""
    short = reprlib.Repr()
    short.maxlevel, short.maxdict, short.maxlist = 3, 5, 5
    short.maxstring = short.maxother = short.maxlong = 60
    try:
        return short.repr(value)
    except ValueError:  # Python does not write out a number of over 4,300 digits
        return "a number of thousands of digits"


class _Place:
    """Where in the file: for errors."""

    def __init__(self, path: Path, lines: Lines):
        self.path, self.lines = path, lines

    def told(self, keys: tuple[str, ...]) -> str:
        line = next((self.lines[keys[:n]] for n in range(len(keys), -1, -1) if keys[:n] in self.lines), 1)
        return f"{self.path}, line {line}" + (f": {'.'.join(keys)}" if keys else "")

    def error(self, keys: tuple[str, ...], what: str) -> CommonweightError:
        return CommonweightError(f"{self.told(keys)}: {what}")

    def keys(self, keys: tuple[str, ...], body: Mapping[str, Any], known: Iterable[str]) -> None:
        known = list(known)
        for key in body:
            if key not in known:
                raise self.error((*keys, str(key)), str(unknown("key", str(key), known)))

    def kind(self, body: Mapping[str, Any], key: str, wanted: Any, told: str) -> None:
        if key in body and not isinstance(body[key], wanted):
            raise self.error((key,), f"is {shown(body[key])}; wanted {told}")


def _source(at: _Place, here: tuple[str, ...], entry: Any, folder: Path) -> Source:
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
            _path(folder, str(value)) if key in ("data", "eval") or (key == "dev" and isinstance(value, str)) else value
        )
    if "dev" in out:
        out["dev"] = str(out["dev"])
    return Source(**out)


def _path(folder: Path, name: str) -> str:
    """From the file's folder; a data set of the hub has no file type."""
    there = folder / name
    saved = folder / name.rpartition(":")[0] if ":" in name else there  # FOLDER:SPLIT
    return str(there) if there.exists() or saved.is_dir() or Path(name).suffix.lower() in KINDS else name


def _parse(path: Path) -> tuple[dict[str, Any], Lines]:
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise CommonweightError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as e:
        raise CommonweightError(f"{path}: cannot be read: {e}") from e
    lines: Lines = {}
    try:
        loader = _loader()
        node = yaml.compose(text, loader)
        if node is not None:
            if _count(node, {}) > MOST:
                raise CommonweightError(f"{path}: its aliases (*name) make more than {MOST:,} values of it")
            _lines(path, node, (), lines)
        body = yaml.load(text, loader)
    except RecursionError:
        raise CommonweightError(f"{path}: no YAML: too many lists and keys inside each other") from None
    except yaml.YAMLError as e:
        mark = getattr(e, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        raise CommonweightError(f"{path}{line}: no YAML: {getattr(e, 'problem', None) or e}") from None
    if not isinstance(body, dict):
        raise CommonweightError(f"{path}: wanted keys and values, tenants: among them")
    return body, lines


def _loader() -> type:
    """YAML's safe loader, for which 2e-3 is a number as in YAML 1.2; in 1.1 it is a text."""
    import yaml

    class Loader(yaml.SafeLoader):
        def construct_object(self, node: Any, deep: bool = False) -> Any:
            """What looks like a date, a number or binary and is none (2026-13-45) is an error of its place."""
            try:
                return super().construct_object(node, deep)
            except (yaml.YAMLError, CommonweightError, RecursionError):
                raise
            except Exception as e:
                shown = repr(getattr(node, "value", ""))[:60]
                raise yaml.constructor.ConstructorError(
                    None,
                    None,
                    f"{shown} cannot be read ({first_line(e)}); a text stands in quotation marks",
                    node.start_mark,
                ) from e

    number = re.compile(r"[-+]?[0-9]+[eE][-+]?[0-9]+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, [*"-+0123456789"])
    return Loader


def _count(node: Any, known: dict[int, float]) -> float:
    """Values in a node when every alias in it is written out; infinity for one that holds itself."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = float("inf")
    inner = [n for pair in node.value for n in pair] if node.id == "mapping" else node.value
    known[id(node)] = 1.0 if node.id == "scalar" else 1.0 + sum(_count(n, known) for n in inner)
    return known[id(node)]


def _lines(path: Path, node: Any, here: tuple[str, ...], out: Lines) -> None:
    """Line of every key. Raises for a key that is twice there, of which YAML's reader would take the last."""
    if node.id == "mapping" and len(here) < 3:
        for key, value in node.value:
            at = (*here, str(key.value))
            if at in out:
                raise CommonweightError(
                    f"{path}, line {key.start_mark.line + 1}: {'.'.join(at)} is there twice, first in line {out[at]}"
                )
            out[at] = key.start_mark.line + 1
            _lines(path, value, at, out)
