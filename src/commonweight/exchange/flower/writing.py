"""Writes a Flower app: a folder of three short files that `flwr run` takes. Needs no Flower."""

from __future__ import annotations

import json
import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...adapt.data import named
from ...adapt.rows import read
from ...adapt.tasks import Classify
from ...core import CommonweightError
from ...formats import atomic
from ..coding import around, of_run
from ..methods import resolve
from ..setting import numbers
from ..splits import dealt

PROJECT = """[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"

[project]
name = {name}
version = "1.0.0"
description = {about}
license = "Apache-2.0"
dependencies = ["commonweight[exchange]"]

[tool.hatch.build.targets.wheel]
packages = ["."]

[tool.flwr.app]
publisher = "commonweight"

[tool.flwr.app.components]
serverapp = "server_app:app"
clientapp = "client_app:app"

# Both sides read these. What a node has of its own is in its --node-config: client=0 rows="FILE" state="FOLDER".
[tool.flwr.app.config]
{config}
"""
SERVER = '''"""The server: chooses clients, gathers what they send, and goes on where it was killed."""

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from commonweight.exchange.flower import serve

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    serve(grid, context.run_config)
'''
CLIENT = '''"""A client: trains on its own rows, sends a few kilobytes."""

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from commonweight.exchange import flower

app = ClientApp()


@app.query()
def query(message: Message, context: Context) -> Message:
    """Its number, how many rows it has, which base."""
    return flower.hello(message, context)


@app.train()
def train(message: Message, context: Context) -> Message:
    """One round."""
    return flower.train(message, context)
'''
SIMULATED = ("vanish", "spread", "deadline", "mixed")


def app(
    model: str, out: Path, *, method: str = "fedavg", options: Mapping[str, Any] | None = None,
    rows: str | None = None, eval_file: str | None = None, run: str | None = None, state: Path | None = None,
    task: str = "classify", labels: Sequence[str] | None = None, sites: str | None = None, dtype: str = "auto",
    no_header: bool = False, floats: bool = False, wait: float = 60.0, timeout: float = 600.0, overwrite: bool = False,
    columns: Mapping[str, str | None] | None = None, **recipe: Any,
) -> Path:  # fmt: skip
    """The folder of an app. Paths that are there are written whole, since Flower runs a copy of it elsewhere.

    rows: from which clients without a file of their own take their part, and the labels are read; eval_file: on the
    server. state: the run's own folder (``run`` beside the app's). run: the name that all messages must bear; drawn
    where it is None. wait: seconds for clients to come; timeout: of a round. floats: messages are plain
    arrays, as Flower's mods of differential privacy (LocalDpMod) want them. recipe: fields of `Rounds` and `Local`.
    Raises: CommonweightError, also for what only a simulation has.
    """
    if fake := [k for k in SIMULATED if recipe.get(k) is not None]:
        raise CommonweightError(f"{', '.join(fake)}: only exchange simulate has that; a network does it by itself")
    if not 0 <= wait < math.inf or not 0 < timeout < math.inf:
        raise CommonweightError(f"wait={wait:g}, timeout={timeout:g}: wanted seconds, of a round more than none")
    found, made = resolve(method, options or {})
    plan, _ = numbers({k: v for k, v in recipe.items() if v is not None})
    coding = of_run(found, made, plan.codec, plan.codec_down, plan.codec_feedback)
    if floats and coding is not None:
        raise CommonweightError("floats: codecs send bytes, which no mod of Flower can add noise to; give one of both")
    if (floats or plan.dp_clip is not None) and found.noise:
        raise CommonweightError(f"{'floats' if floats else 'dp_clip'}: {found.name} cannot: {found.noise}")
    given = {k: v for k, v in (columns or {}).items() if v}
    read_rows = read(rows, list(given.values()), no_header=no_header, say=lambda _: None) if rows else []
    if plan.split == "files":
        raise CommonweightError("split=files: give each node its own file, --node-config 'client=0 rows=\"FILE\"'")
    if task == "classify" and labels is None:
        if not rows:
            raise CommonweightError("classify without rows: every side must know the labels; give rows or --labels")
        labels = named(rows, lambda r: Classify.classes(r, given.get("label-column")), read_rows)
    if rows:  # what cannot be dealt out is said here, and not by every node
        try:
            places = dealt(
                read_rows, plan.clients, plan.split, seed=plan.seed, label_column=given.get("label-column"),
                asked=recipe.get("clients"),
            )  # fmt: skip
        except CommonweightError as e:
            raise CommonweightError(
                f"{e}; where every node has a file of its own, give --labels in place of rows"
            ) from e
        if plan.split.startswith("column:"):
            recipe["clients"] = len(places)
            numbers({k: v for k, v in recipe.items() if v is not None})  # sample and minimum are of so many
    recipe = {k: v for k, v in {"clients": plan.clients, "rounds": plan.rounds, **recipe}.items() if v is not None}
    config: dict[str, Any] = {
        "model": _whole(model), "rows": rows and _whole(rows), "eval": eval_file and _whole(eval_file),
        "out": str((state or out.parent / f"{out.name}-run").absolute()), "run": run or secrets.token_hex(4),
        "method": method, "options": json.dumps(dict(options)) if options else None, "task": task,
        "labels": json.dumps(list(labels)) if labels else None, "sites": sites, "dtype": dtype,
        "no-header": no_header or None, "floats": floats or None, "wait": float(wait), "timeout": float(timeout),
        **given, **recipe,
    }  # fmt: skip
    lines = [f"{k.replace('_', '-')} = {json.dumps(v)}" for k, v in config.items() if v is not None]
    if out.exists() and (not out.is_dir() or (any(out.iterdir()) and not overwrite)):
        raise CommonweightError(f"--out {out}: not empty; --overwrite replaces the app that lies there")
    atomic.make_folder(out)
    about = json.dumps(f"{found.name} of commonweight: {around(found, coding).formula} bytes of a client and round")
    text = PROJECT.format(name=json.dumps(_name(out)), about=about, config="\n".join(lines))
    for name, content in (("pyproject.toml", text), ("server_app.py", SERVER), ("client_app.py", CLIENT)):
        atomic.write(out / name, content.encode())
    return out


def _whole(path: str) -> str:
    """A path that is there, from the root; else as it is: a name on the hub."""
    return str(Path(path).absolute()) if Path(path).exists() else path


def _name(out: Path) -> str:
    """A name that packages may have."""
    name = "".join(c if c.isalnum() and c.isascii() else "-" for c in out.absolute().name.lower()).strip("-")
    return name or "app"
