"""One process of a run of files, as the command line asks for it."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ...adapt.base import open_host
from ...adapt.rows import read
from ...adapt.settings import digest
from ...core import CommonweightError
from ..files import options
from ..measured import measure
from ..setting import by_client, make_task, numbers, ready
from ..setting import told as settings_of
from ..splits import split
from .carrier import Carrier, carrier
from .disk import Disk
from .engine import Replica, exchange

# all take part in every round, each with one client; noise that each drew for itself would part their numbers
NONE = ("sample", "vanish", "spread", "deadline", "mixed", "dp_noise")


def carried(lighthouse: str | None, client: int | None, clients: int | None) -> Carrier:
    """torchft's where there is a Lighthouse; else what `torchrun` started. Raises: CommonweightError."""
    if lighthouse is None:
        if client is not None:
            raise CommonweightError("--client belongs to --lighthouse; torchrun numbers its processes itself")
        return carrier()
    if client is None or clients is None or not 0 <= client < clients:
        raise CommonweightError(f"--lighthouse needs --clients N and --client 0 to N-1; given {clients} and {client}")
    try:
        from .ft import Torchft
    except ImportError as e:
        raise CommonweightError(f"--lighthouse needs torchft ({e}); pip install torchft-nightly") from e
    return Torchft(client, clients, lighthouse)


def run(
    model: str, rows: str, out: Path, *, pairs: Sequence[str] = (), method: str = "diloco", task: str = "classify",
    eval_file: str | None = None, text_column: str | None = None, label_column: str | None = None,
    no_header: bool = False, sites: str | None = None, dtype: str = "auto", lighthouse: str | None = None,
    client: int | None = None, clients: int | None = None, state: Path | None = None, resume: bool = False,
    say: Callable[[str], None] = print, **recipe: Any,
) -> tuple[Replica, dict[str, float]]:  # fmt: skip
    """Deals the rows out, trains, and writes the tenant: the first process, or with a Lighthouse each, the same bytes.

    state: a folder for every process's last rounds; resume: goes on from there after all were killed.
    Raises: CommonweightError.
    """
    given = options(method, pairs)
    if none := [k for k in NONE if recipe.get(k) is not None]:
        raise CommonweightError(f"{', '.join(none)}: processes without a server have none of it; leave it out")
    if resume and state is None:
        raise CommonweightError("--resume goes on from the folder of --state; name it")
    asked = [c for c in (text_column, label_column) if c]
    every = read(rows, asked, no_header=no_header, say=lambda _: None)
    by = carried(lighthouse, client, clients)
    plan, local = numbers({**recipe, "clients": by.clients})
    if plan.codec_down is not None:
        raise CommonweightError(
            "codec_down: between processes nothing comes down, as each makes the server's step itself; give codec alone"
        )
    places = split(every, by.clients, plan.split, seed=plan.seed, label_column=label_column)
    host = open_host(model, task, dtype=dtype)
    reading = {"text_column": text_column, "label_column": label_column}
    doing = make_task(host, task, every, None, None, local, reading, rows)
    p = ready(host, doing, method, given, plan, local, clients=by.clients, sites=sites)
    first = by.client == 0

    def told(line: dict[str, Any]) -> None:
        if first or lighthouse:
            say(f"round {line['round'] + 1}/{plan.rounds}: {line['replies']} of {by.clients}, loss {line['loss']:.4f}")

    mine = by_client(doing, every, places)[by.client]
    known = json.dumps(settings_of(p) | {"rows": digest(mine)}, sort_keys=True)
    disk = None if state is None else Disk(state, by.client, known)
    if disk is not None and disk.rounds() and not resume:
        raise CommonweightError(f"--state {state}: holds rounds of a run; --resume goes on with it, or empty it")
    done = exchange(p, mine, by, told, disk, resume)
    found: dict[str, float] = {}
    if first or lighthouse:
        if eval_file is not None:
            held = read(eval_file, asked, split="test", no_header=no_header, say=lambda _: None)
            found = measure(p, p.tenant, doing.examples(held))
        host.save(p.tenant.name, out)
    return done, found
