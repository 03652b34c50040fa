"""A simulated run of files, as the command line asks for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..adapt.data import named
from ..adapt.rows import read
from ..adapt.tasks import Classify
from ..adapt.together import Standing, standing_in
from ..adapt.together import free as free_name
from ..commons import Commons
from ..core import CommonweightError, parse
from ..methods import get as adapter_of
from .coding import of_run
from .local import Rounds
from .methods import get, resolve
from .privacy import refuse
from .run import Run, free
from .setting import NAME, numbers
from .simulation import Progress, check_holdout, simulate
from .splits import dealt, known


def options(name: str, pairs: Sequence[str], there: Standing | None = None) -> dict[str, Any]:
    """A method's options from ``name=value``; of one whose adapter can be chosen also those of that adapter, which is
    that of the common, if there is one.

    Raises: CommonweightError for an option that neither has."""
    found = get(name)
    if "options" not in found.config.__dataclass_fields__:
        return parse(found.config, list(pairs))
    own = [p for p in pairs if p.partition("=")[0] in found.config.__dataclass_fields__]
    mine = parse(found.config, own)
    if there is not None and mine.get("adapter", there.method) == there.method:
        mine = {"adapter": there.method, **there.options, **mine}
    adapter = mine.get("adapter", found.config().adapter)
    return mine | parse(adapter_of(adapter).config, [p for p in pairs if p not in own])


def _there(store: str | Path | None, common: str) -> Standing:
    if store is None:
        raise CommonweightError(f"--common {common}: which store has it? name it with --store")
    return standing_in(Commons(store, make=False), common)


def run(
    model: str,
    rows: Sequence[str],
    out: Path,
    *,
    method: str,
    pairs: Sequence[str] = (),
    task: str = "classify",
    eval_file: str | None = None,
    store: str | Path | None = None,
    common: str | None = None,
    no_header: bool = False,
    dtype: str = "auto",
    device: str = "auto",
    say: Callable[[str], None] = print,
    progress: Callable[[Progress], None] | None = None,
    **more: Any,
) -> Run:
    """Reads rows, opens the base, simulates. rows: one file, or several, each a client's with ``split="files"``.

    store, common: clients train late tenants of this common of the store, whose pools do not change; its method,
    options and sites are those of its tenants, as for `adapt.run_late`.

    Raises: CommonweightError, before anything is loaded where it can be known by then.
    """
    from ..adapt.base import open_host, where

    there = None if common is None else _there(store, common)
    free(Path(out), resume=more.get("resume", False), overwrite=more.get("overwrite", False))
    known(more.get("split", "iid"))
    check_holdout(more.get("holdout", 0.0))
    asked = [more[c] for c in ("text_column", "label_column", "prompt_column", "completion_column") if more.get(c)]
    each = [read(r, asked, no_header=no_header, say=say) for r in rows]
    heads = [sorted(r[0]) for r in each]
    if any(h != heads[0] for h in heads):
        raise CommonweightError(f"{rows[0]} has the columns {', '.join(heads[0])}; the others have other ones")
    held = read(eval_file, asked, split="test", no_header=no_header, say=say) if eval_file is not None else None
    given, source = options(method, pairs, there), [i for i, one in enumerate(each) for _ in one]
    every = [r for one in each for r in one]
    plan, _ = numbers({k: v for k, v in more.items() if k in Rounds.__dataclass_fields__})  # type: ignore[attr-defined]
    found, config = resolve(method, given)
    of_run(found, config, plan.codec, plan.codec_down, plan.codec_feedback)
    if plan.dp_clip is not None:
        refuse(found, {})
    label = more.get("label_column")
    dealt(
        every, plan.clients, plan.split, seed=plan.seed, label_column=label, files=source, asked=more.get("clients")
    )  # before the base is opened
    labels = named(rows[0], lambda r: Classify.classes(r, label), every) if task == "classify" else None
    host = open_host(model, task, dtype=dtype, device=device, pool=None if there is None else there.pool)
    say(where(host))
    if there is not None:
        assert store is not None
        host.load_from(Commons(store, make=False), there.tenant, as_=free_name(there.tenant, (NAME,)))
        more["sites"] = more.get("sites") or (lambda name, _: name in there.sites)
    return simulate(
        host, every, method=method, options=given, common=common, task=task, eval_rows=held, out=out, files=source,
        labels=labels, progress=progress, source=rows[0], eval_source=str(eval_file), **more,
    )  # fmt: skip
