"""A stream's file: YAML that says which tasks come, in which order, and how they are learned.

method: ewc                  # of `commonweight lifelong`; options of it and of its adapter
options: {adapter: lora, rank: 16}
recipe: {epochs: 3}
tasks:
  trec: {data: trec.train.tsv, dev: trec.dev.tsv, eval: trec.test.tsv}
  sst2: {data: sst2.train.tsv, dev: 0.1}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..adapt.job import Job, Source, checks
from ..adapt.recipe import Recipe
from ..adapt.tenants_file import source
from ..adapt.yaml_file import Place, parse, shown
from ..core import CommonweightError, build, safe

TEXTS = "method", "task", "sites", "dtype", "device", "quantize", "pool"
KEYS = (*TEXTS, "options", "recipe", "device_map", "tasks")


@dataclass(frozen=True, kw_only=True)
class StreamFile:
    """tasks: in their order. how: of the base and the rows, as `Job` has it. method: None where it does not say."""

    name: str
    tasks: Mapping[str, Source]
    method: str | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, Any] = field(default_factory=dict)
    how: Mapping[str, Any] = field(default_factory=dict)

    def options_of(self, method: str | None) -> Mapping[str, Any]:
        """Those of the file, where it is the file's method that is run; None: nobody names another."""
        return self.options if method in (None, self.method) else {}

    def job(self, adapter: str, options: Mapping[str, Any]) -> Job:
        """As several tenants of an adapter, for what looks at files before anything is trained."""
        return Job(tenants=self.tasks, method=adapter, options=options, recipe=self.recipe, **self.how)


def read_stream(path: str | Path) -> StreamFile:
    """Reads a stream's file. Paths in it are relative to its folder; the stream is called as the file.

    Raises: CommonweightError with file, line and key.
    """
    path = Path(path)
    body, lines = parse(path, "tasks:")
    at = Place(path, lines)
    at.keys((), body, KEYS)
    if not isinstance(tasks := body.get("tasks"), dict) or not tasks:
        wanted = "wanted names of tasks in their order, each with data, as in `tasks: {trec: {data: trec.tsv}}`"
        raise at.error(("tasks",), f"is {shown(tasks)}; {wanted}")
    sources = {}
    for name, entry in tasks.items():
        here = ("tasks", str(name))
        try:
            safe(name)
        except CommonweightError as e:
            raise at.error(here, str(e)) from e
        sources[name] = source(at, here, entry, path.parent)
    for key in TEXTS:
        at.kind(body, key, str, "a name")
    for key in ("options", "recipe"):
        at.kind(body, key, dict, "keys and values, as in {rank: 16}")
    at.kind(body, "device_map", (str, dict), "auto, or modules and their places")
    try:
        build(Recipe, body.get("recipe", {}))
    except CommonweightError as e:
        raise at.error(("recipe",), str(e)) from e
    how = {k: v for k, v in body.items() if k in ("task", "sites", "dtype", "device", "quantize", "pool", "device_map")}
    out = StreamFile(
        name=safe(path.stem), tasks=sources, method=body.get("method"), options=body.get("options", {}),
        recipe=body.get("recipe", {}), how=how,
    )  # fmt: skip
    for keys, look in checks(out.job("lora", {})):
        try:
            look()
        except CommonweightError as e:
            raise at.error(("tasks", *keys[1:]) if keys[0] == "tenants" else keys, str(e)) from e
    return out
