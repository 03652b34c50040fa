"""Measuring a merged result: on rows of texts with labels, on rows for a language model, or by a harness."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError, unknown
from ...formats import atomic
from ..recipe import Recipe
from ..sources.opened import is_tenant, open_tenant, stored
from ..stream import digest
from . import harness
from .harness import Score

if TYPE_CHECKING:
    from ...adapt.rows import Row
    from ...host import Host

METRICS = ("accuracy", "macro_f1")
TEXTS = ("perplexity", "loss", "bits_per_byte", "token_accuracy")  # of a language model
_AT_ONCE = 8  # rows of a language model, whose logits are large
FILE = "evaluation.json"


class Head(NamedTuple):
    """Of a classifier: W (classes, d), b (classes,)."""

    labels: tuple[str, ...]
    W: Tensor
    b: Tensor


class Wanted(NamedTuple):
    """What to measure, all of it read and looked at. files: name -> (file, rows); heads: name -> its classifier, where
    it has one: rows of the others are a language model's. include: a folder of the harness's task definitions."""

    files: Mapping[str, tuple[str, list[Row]]]
    heads: Mapping[str, Head]
    tasks: tuple[str, ...]
    known: Any
    limit: int | None
    batch_size: int
    include: Path | None = None


def prepare(
    tasks: Sequence[str] | Mapping[str, Any],
    heads: Mapping[str, str | Path] | None = None,
    *,
    offered: Mapping[str, str | Path] | None = None,
    tenant: bool = False,
    limit: int | None = None,
    include: str | Path | None = None,
    batch_size: int = 64,
) -> Wanted:
    """tasks: ``NAME=FILE`` (or name -> file or rows), else tasks of lm-evaluation-harness.

    Rows with a head are classified; rows without labels are scored by the language model, as `adapt --task lm` reads
    them. heads: name -> the tenant whose classifier reads that task's features; not of a merged tenant, which has its
    own or none. offered: more of them, not all of which must be used.
    Raises: CommonweightError for files and heads that are missing, and for a harness that is not installed.
    """
    from ...adapt.rows import LABEL, read

    if isinstance(tasks, Mapping):
        named, asked = dict(tasks), []
    else:
        named = {s.partition("=")[0]: s.partition("=")[2] for s in tasks if "=" in s}
        asked = [t for s in tasks if "=" not in s for t in s.split(",") if t]
    if not named and not asked:
        raise CommonweightError("nothing to evaluate: give NAME=FILE, or a task of lm-evaluation-harness")
    if limit is not None and limit < 1:
        raise CommonweightError(f"--eval-limit is {limit}; it must be at least 1")
    files = {
        n: (str(f), read(f)[:limit]) if isinstance(f, str | Path) else ("rows", list(f)[:limit])
        for n, f in named.items()
    }
    for name in heads or {}:
        if name not in files:
            raise unknown("task of --head", name, files)
    found, there = {}, {**(offered or {}), **(heads or {})}
    for name in () if tenant else files:
        if name not in there:
            if not set(LABEL) & set(files[name][1][0] if files[name][1] else ()):
                continue
            known = ", ".join(there) or "none"
            raise CommonweightError(
                f"--eval {name}: no head for it among the inputs (heads: {known}), and its rows have labels; give the "
                f"tenant that has it: --head {name}=TENANT. A language model is scored on rows without a label column"
            )
        found[name] = head_of(there[name])
    manager = harness.manager(asked, include) if asked else None
    return Wanted(files, found, tuple(asked), manager, limit, batch_size, None if include is None else Path(include))


def heads_in(recipe: Recipe) -> dict[str, str | Path]:
    """The tenants among a recipe's inputs, by their names in a store or their files' stems."""
    out: dict[str, str | Path] = {}
    for entry in (i.model for part in recipe.slices for i in part.inputs):
        name = entry.partition("+")[2] or entry
        for near in (Path(recipe.folder) / name, Path(name).expanduser()):
            if (there := stored(near)) is not None or is_tenant(near):
                out.setdefault(Path(name).stem if there is None else there[1].partition("@")[0], near)
                break
    return out


def head_of(tenant: str | Path) -> Head:
    """Raises: CommonweightError for a tenant without a classifier."""
    opened = open_tenant(tenant)
    sites = {s.name for s in opened.sites}
    pools = {p for u in opened.plan.uses if u.site not in sites for r in u.reads.values() for p in r.pools}
    labels = opened.header.get("labels")
    if not labels or not pools:
        raise CommonweightError(f"{opened.label}: it has no classifier; give a tenant that was trained with labels")
    w, b = (opened.pools[next(p for p in pools if p.endswith(end))].detach() for end in (".W", ".b"))
    return Head(tuple(labels), w, b)


def run(result: str | Path, wanted: Wanted, base: str | Path | None = None) -> list[Score]:
    """result: the folder of a merged model, or the file of a merged tenant on the model `base`."""
    from ...adapt.base import open_host, tokenizer_of

    tenant, out = is_tenant(Path(result)), list[Score]()
    if tenant and base is None:
        raise CommonweightError(f"{result}: a tenant is evaluated on its base; give base (--base MODEL)")
    where = base if tenant else result
    labels = bool(open_tenant(result).header.get("labels")) if tenant else None
    for kind in ("classify", "lm"):
        names = [n for n in wanted.files if ((n in wanted.heads) if labels is None else labels) == (kind == "classify")]
        if names:
            out += _rows(open_host(str(where), kind, dtype="float32"), kind, names, wanted, result if tenant else None)
    if wanted.tasks:
        how = {"limit": wanted.limit, "batch_size": wanted.batch_size}
        if tenant:
            host = open_host(str(where), "lm")
            with host.route(host.load("merged", str(result)).name):
                out += harness.run((host.model, tokenizer_of(host.model)), wanted.tasks, wanted.known, **how)
        else:
            out += harness.run(where, wanted.tasks, wanted.known, **how)
    return out


def _rows(host: Host, kind: str, names: Sequence[str], wanted: Wanted, tenant: str | Path | None) -> list[Score]:
    """On the files of these names. kind: classify, by a tenant's own head or by that of each name; or lm."""
    from ...adapt.train import evaluate as measure

    out = []
    for name in names:
        file, rows = wanted.files[name]
        if tenant is not None:
            reader = host.load(name, str(tenant)).name
        else:
            reader = _put(host, name, wanted.heads[name]) if kind == "classify" else None
        size = wanted.batch_size if kind == "classify" else min(wanted.batch_size, _AT_ONCE)
        found = measure(host, reader, rows, kind, batch_size=size)
        if kind == "lm":
            found["perplexity"] = math.exp(min(found["loss"], 700))  # beyond that no number is a float
        told = METRICS if kind == "classify" else TEXTS
        out += [Score(name, m, found[m], None, int(found["n"]), file) for m in told]
        if reader is not None:
            host.remove(reader)
    return out


def score(wanted: Wanted, folder: Path) -> float:
    """One number to search by: the mean over tasks of the first metric of each; of a language model's rows 1 over the
    perplexity, which is the geometric mean of its tokens' probabilities: more is better, as of an accuracy."""
    first: dict[str, float] = {}
    for s in run(folder, wanted):
        first.setdefault(s.task, 1 / s.value if s.metric == "perplexity" else s.value)
    return sum(first.values()) / len(first)


def mark(wanted: Wanted) -> str:
    """A digest of all that a score depends on, beside the model: rows, heads, tasks, and how many rows of them."""
    rows = {name: found for name, (_, found) in wanted.files.items()}
    heads = {name: [h.labels, h.W.float(), h.b.float()] for name, h in wanted.heads.items()}
    there = (
        [] if wanted.include is None else sorted(filter(partial(_is_task, wanted.include), wanted.include.rglob("*")))
    )
    return digest.of_value([rows, heads, wanted.tasks, wanted.limit, [digest.of_file(f) for f in there]])


def _is_task(folder: Path, file: Path) -> bool:
    """Whether a file under a folder of task definitions is of them, data too: not what Python or a search leaves."""
    parts = file.relative_to(folder).parts
    return file.is_file() and not any(p == "__pycache__" or p.startswith(".") for p in parts)


@torch.no_grad()
def _put(host: Host, name: str, head: Head) -> str:
    tenant = host.add(name, "probe", labels=head.labels)
    for pool, value in tenant.pools.items():
        mine = head.W if pool.endswith(".W") else head.b
        if mine.shape != value.shape:
            raise CommonweightError(
                f"{name}: its head is for features of width {head.W.shape[1]}; the merged model's have another"
            )
        value.copy_(mine)
    return name


def evaluate(
    result: str | Path,
    tasks: Sequence[str] | Mapping[str, Any],
    *,
    heads: Mapping[str, str | Path] | None = None,
    base: str | Path | None = None,
    limit: int | None = None,
    include: str | Path | None = None,
    batch_size: int = 64,
) -> list[Score]:
    """Measures a merged model's folder, or a merged tenant's file on its `base`.

    tasks, heads: as `prepare` has them. limit: rows a task at most; include: a folder of the harness's task
    definitions. Accuracy and macro F1 of classification are shares of 1. Cost: one forward pass over the rows.
    Raises: CommonweightError for files, heads, labels and models that do not fit, and without the harness.
    """
    own = is_tenant(Path(result))
    wanted = prepare(tasks, heads, tenant=own, limit=limit, include=include, batch_size=batch_size)
    return run(result, wanted, base)


def table(scores: Sequence[Score]) -> list[str]:
    """Markdown."""
    lines = ["| task | metric | value | standard error | rows | of |", "| --- | --- | ---: | ---: | ---: | --- |"]
    for s in scores:
        error, n = "" if s.error is None else f"{s.error:.4f}", "" if s.n is None else str(s.n)
        lines.append(f"| {s.task} | {s.metric} | {s.value:.4f} | {error} | {n} | {Path(s.of).name} |")
    return lines


def write(folder: Path, scores: Sequence[Score]) -> None:
    """Into the model card, under a heading of its own, and as evaluation.json; again: in the place of before."""
    card, mark = folder / "README.md", "## Evaluation"
    text = card.read_text(encoding="utf-8") if card.exists() else ""
    text = text.partition(f"\n{mark}\n")[0].rstrip("\n")
    atomic.write(card, "\n".join([text, "", mark, "", *table(scores), ""]).encode())
    told = [s._asdict() for s in scores]
    atomic.write(folder / FILE, (json.dumps(told, indent=1, ensure_ascii=False) + "\n").encode())


def metrics(scores: Sequence[Score]) -> dict[str, dict[str, float]]:
    """As a tenant's header keeps them: task -> metric -> value."""
    out: dict[str, dict[str, float]] = {}
    for s in scores:
        out.setdefault(s.task, {})[s.metric] = s.value
    return out
