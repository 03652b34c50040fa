"""commonweight merge: models into one, by a recipe or by options."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from ..core import counted

EXAMPLES = """[bold]Examples[/bold]

What a recipe would read, compute and write; then the merge itself:

  commonweight merge recipe.yaml --plan
  commonweight merge recipe.yaml --out merged

Without a file:

  commonweight merge --method ties --base ./base ./math ./code -o density=0.2 --out merged

Merge tenants of one base into one tenant:

  commonweight merge --tenants legal.safetensors ./store:medical --method linear --out both.safetensors

Merge PEFT LoRA folders into one; linear is exact:

  commonweight merge --tenants ./legal-lora ./medical-lora --method linear -w 0.7 -w 0.3 --out both-lora

Evaluate the merged model, with the heads of the input tenants or by lm-evaluation-harness:

  commonweight merge --method ties --base ./base ./base+trec.safetensors ./base+mr.safetensors --out merged --eval trec=trec.test.tsv --eval mr=mr.test.tsv
  commonweight merge recipe.yaml --out merged --eval arc_easy,hellaswag --eval-limit 200

Find the best density and weight on dev rows in 40 trials; the same command continues a search that was killed:

  commonweight merge recipe.yaml --out merged --search options.density=0.1..0.9 --search models.1.weight=0..1 --budget 40 --eval trec=trec.dev.tsv

Make a mixture of experts of several models, by a recipe of mergekit-moe:

  commonweight merge mixture.yaml --out mixture

Continue a merge that was killed; the result has the same bytes:

  commonweight merge recipe.yaml --out merged --resume
"""  # noqa: E501


def command(
    inputs: Annotated[list[str], typer.Argument(help="A recipe (.yaml), or with --method the models to merge.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the merged model; with --tenants, a "
                     "file, or a folder of PEFT.")] = None,
    method: Annotated[str | None, typer.Option("--method", "-m", help="The merge method, in place of a "
                     "recipe.")] = None,
    base: Annotated[str | None, typer.Option(help="The model that the others were trained from.")] = None,
    weight: Annotated[
        list[float] | None, typer.Option("--weight", "-w", help="One weight for each model, in order; may be repeated.")
    ] = None,
    option: Annotated[
        list[str] | None,
        typer.Option("--option", "-o", metavar="NAME=VALUE", help="An option of the method; may be repeated."),
    ] = None,
    dtype: Annotated[str | None, typer.Option(help="Dtype of the result: float32, float16 or bfloat16.")] = None,
    plan: Annotated[bool, typer.Option("--plan", help="Print what would be read, computed and written, and "
                     "stop.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Continue a merge that was killed.")] = False,
    threads: Annotated[int | None, typer.Option(help="Threads to use (all cores).")] = None,
    shard_size: Annotated[str, typer.Option(help="Largest file, as in 5GB or 500MB.")] = "5GB",
    tenants: Annotated[
        bool, typer.Option("--tenants", help="Merge tenants (files, STORE:TENANT) into one tenant, or "
                           "PEFT LoRA folders into one folder.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace an existing result.")
    ] = False,
    space: Annotated[
        str | None, typer.Option(help="With --tenants: merge pools, or weights (gives a LoRA tenant). "
                     "[dim]default: what is exact[/]")
    ] = None,
    rank: Annotated[int | None, typer.Option(help="With --tenants: cut the LoRA tenant to this rank.")] = None,
    evals: Annotated[
        list[str] | None,
        typer.Option("--eval", metavar="NAME=FILE|TASK", help="Measure the result: rows for a language model (as "
                     "adapt --task lm reads them: perplexity), rows of a classification task with "
                     "the head of the input tenant NAME, or tasks of lm-evaluation-harness; may be repeated. Tenants "
                     "are measured on --base."),
    ] = None,
    head: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=TENANT", help="The head of --eval NAME, where no input has it; may be repeated."),
    ] = None,
    eval_limit: Annotated[int | None, typer.Option(help="Use at most this many rows of each --eval.")] = None,
    eval_tasks: Annotated[Path | None, typer.Option(help="Folder of lm-evaluation-harness task definitions.")] = None,
    find: Annotated[
        list[str] | None,
        typer.Option("--search", metavar="PLACE=LOW..HIGH", help="Find the value at this place of the recipe "
                     "that gives the "
                     "best mean of --eval (accuracy, or 1 / perplexity); words as in method=ties|sce; may be "
                         "repeated."),
    ] = None,
    budget: Annotated[int, typer.Option(help="Number of trials of --search.")] = 32,
    engine: Annotated[str | None, typer.Option(help="Search engine: cmaes (numbers alone) or optuna (words "
                     "too).")] = None,
    seed: Annotated[int, typer.Option(help="Seed of --search.")] = 0,
    jobs: Annotated[int, typer.Option(help="Trials of --search side by side on this machine.")] = 1,
    ray: Annotated[str | None, typer.Option(metavar="ADDRESS", help="Run --search on a Ray cluster: its "
                     "address, auto, or local.")] = None,
) -> None:  # fmt: skip
    """Merge models into one: streamed from disk to disk, in bounded memory."""
    from ..core import CommonweightError
    from ..formats import atomic
    from . import early

    most = _bytes(shard_size)
    if threads is not None and threads < 1:
        raise CommonweightError(f"--threads is {threads}; it must be at least 1")
    if out is None and not plan:
        raise CommonweightError("--out is missing: the folder of the merged model (or --plan, to look first)")
    if not evals and (head or eval_limit is not None or eval_tasks):
        raise CommonweightError("--head, --eval-limit and --eval-tasks go with --eval")
    if not find and (engine or ray or jobs != 1):
        raise CommonweightError("--engine, --jobs and --ray go with --search; a merge uses --threads")
    if find and (tenants or resume):
        raise CommonweightError("--search goes with recipes of models; it resumes by itself, from its log beside --out")
    if evals and plan:
        raise CommonweightError("--plan writes nothing that --eval could measure; give one of them")
    if method is None and not tenants and len(inputs) > 1:
        raise CommonweightError(f"{len(inputs)} inputs and no --method: give one recipe, or --method and the models")
    if method is None and not tenants and (base or weight or option or dtype):
        raise CommonweightError("--base, --weight, --option and --dtype go with --method; a recipe says them itself")
    early.merge_method(method)
    early.models([*inputs, *([base] if base else [])])
    if tenants and out is not None and not out.is_dir():
        atomic.free(out, "--out", overwrite=overwrite)
    elif out is not None and out.exists() and not (resume or overwrite):
        raise atomic.taken(out)

    from ..merge.learning import evaluation
    from ..merge.output.finished import finished
    from ..merge.plan import figures as plans
    from ..merge.recipe import load
    from ..merge.recipe.build import build
    from ..merge.stream.pool import cores

    if tenants:
        if plan or resume or dtype or (base and not evals):
            raise CommonweightError("--plan, --resume, --base and --dtype are for models, not for --tenants")
        assert out is not None
        if evals and not base:
            raise CommonweightError("--eval of --tenants needs --base: the model on which they are measured")
        if head:
            raise CommonweightError("--head is for models; merged tenants have a head of their own")
        wanted = evaluation.prepare(evals, tenant=True, limit=eval_limit, include=eval_tasks) if evals else None
        given = dict(map(_option, option or []))
        _tenants(inputs, out, method or "linear", weight, given, space, rank, wanted, base, overwrite)
        return
    if space or rank:
        raise CommonweightError("--space and --rank go with --tenants")
    recipe: Any
    if method is not None:
        recipe = {"method": method, "models": list(inputs), "options": dict(map(_option, option or []))}
        recipe |= {k: v for k, v in (("base", base), ("weights", weight), ("dtype", dtype)) if v}
    else:
        recipe = Path(inputs[0])
    loaded = load(recipe)
    wanted = None
    if evals:
        heads, offered = dict(map(_head, head or [])), evaluation.heads_in(loaded)
        wanted = evaluation.prepare(evals, heads, offered=offered, limit=eval_limit, include=eval_tasks)
    if find:
        assert out is not None
        if wanted is None:
            raise CommonweightError("--search needs --eval, which scores the trials")
        how = {"budget": budget, "engine": engine, "seed": seed, "overwrite": overwrite}
        _search(recipe, dict(map(_range, find)), wanted, out, jobs, ray, **how)
        return
    built = build(loaded)
    if plan:
        typer.echo(plans.text(plans.plan(built, threads or cores(), most)))
        return
    assert out is not None
    done = finished(built, out) if resume and out.exists() else None
    found = done or _written(built, out, threads, most, resume=resume, overwrite=overwrite)
    if done is not None:
        typer.echo(f"{out}: is finished; nothing is left to do", err=True)
    reused = f", {found.reused} of them from before" if found.reused else ""
    typer.echo(f"{found.folder}: {counted(found.tensors, 'tensor')}{reused}, {found.nbytes:,} bytes")
    if wanted is not None:
        scores = evaluation.run(found.folder, wanted)
        evaluation.write(found.folder, scores)
        _table(scores)


def _written(built: Any, out: Path, threads: int | None, most: int, **how: bool) -> Any:
    from ..merge.output import folder

    for notice in built.notices:
        typer.echo(f"notice: {notice}", err=True)
    say: Any = partial(typer.echo, err=True)
    try:
        with Bar(sum(t.numel for t in built.tasks)) as bar:
            return folder.write(built, out, threads=threads, shard_bytes=most, watch=bar, say=say, **how)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command with --resume goes on where it stopped", err=True)
        raise typer.Exit(130) from None


def _search(recipe: Any, space: Any, wanted: Any, out: Path, jobs: int, ray: str | None, **how: Any) -> None:
    import yaml

    from ..merge import tune_recipe
    from ..merge.learning import evaluation, search
    from ..workers import workers

    how["engine"] = how["engine"] or ("optuna" if any(map(search.words, space.values())) else "cmaes")
    with workers(jobs, ray, preload="commonweight.merge") as run:
        given: dict[str, Any] = {} if jobs == 1 and ray is None else {"run": search.side_by_side(run)}
        if given and how["engine"] == "optuna":
            given["population"] = max(2, jobs)
        about = {"evaluation": evaluation.mark(wanted)}
        done = tune_recipe(recipe, space, partial(evaluation.score, wanted), out, about=about, **how, **given)
    best = ", ".join(f"{k}={v if isinstance(v, str) else format(v, '.4g')}" for k, v in done.found.best.items())
    typer.echo(f"{out}: the best of {len(done.found.history)} trials, {done.found.score:.4f}: {best}")
    typer.echo(yaml.safe_dump(done.recipe, sort_keys=False).rstrip())
    scores = evaluation.run(out, wanted)
    evaluation.write(out, scores)
    _table(scores)


def _range(text: str) -> tuple[str, tuple[Any, ...]]:
    from ..core import CommonweightError

    place, _, limits = text.partition("=")
    low, dots, high = limits.partition("..")
    try:
        if dots:
            return place, (float(low), float(high))
    except ValueError:
        pass
    if place and "|" in limits and not dots:
        return place, tuple(limits.split("|"))
    raise CommonweightError(
        f"--search {text}: wanted PLACE=LOW..HIGH or PLACE=word|word, as in options.density=0.1..0.9"
    )


def _table(scores: Any) -> None:
    from rich.console import Console
    from rich.table import Table

    shown = Table(box=None)
    for name in ("task", "metric", "value", "error", "rows"):
        shown.add_column(name, justify="left" if name in ("task", "metric") else "right")
    for s in scores:
        error, n = "" if s.error is None else f"{s.error:.4f}", "" if s.n is None else str(s.n)
        shown.add_row(s.task, s.metric, f"{s.value:.4f}", error, n)
    Console().print(shown)


def _head(text: str) -> tuple[str, str]:
    from ..core import CommonweightError

    name, equals, tenant = text.partition("=")
    if not equals or not name or not tenant:
        raise CommonweightError(f"--head {text}: wanted a task's name and a tenant, as in trec=trec.safetensors")
    return name, tenant


def _tenants(
    inputs: list[str], out: Path, method: str, weights: Any, options: dict[str, Any], space: Any, rank: int | None,
    wanted: Any, base: str | None, overwrite: bool,
) -> None:  # fmt: skip
    from ..core import CommonweightError
    from ..merge import tenants
    from ..merge.adapters.folders import is_folder
    from ..merge.learning import evaluation

    if odd := next(filter(is_folder, inputs), None):
        if other := next((x for x in inputs if not is_folder(x)), None):
            raise CommonweightError(
                f"{odd} is a PEFT adapter's folder and {other} is not; give --tenants inputs of one kind, or merge "
                f"models: MODEL+{odd} MODEL+{other}"
            )
        if wanted is not None or space == "pools" or out.suffix == ".safetensors":
            raise CommonweightError(
                f"{odd} is a PEFT adapter's folder, and so is the result: --out must name a folder, and --space pools "
                "and --eval are for tenants (to evaluate, merge models: MODEL+ADAPTER)"
            )
        return _folders(inputs, out, method=method, weights=weights, rank=rank, overwrite=overwrite, **options)
    found = tenants(inputs, method=method, weights=weights, space=space, rank=rank, **options)
    path = found.save(out, overwrite=overwrite)
    if found.space == "weights":
        typer.echo(f"notice: merged in weight space, into LoRA: {found.why}", err=True)
    worst = max(found.error.items(), key=lambda e: e[1], default=None)
    error = f", largest relative error {worst[1]:.2g} at {worst[0]}" if worst else ""
    typer.echo(f"{path}: {found.header['method']}, merged in {found.space}{error}, {path.stat().st_size:,} bytes")
    if wanted is not None:
        scores = evaluation.run(path, wanted, base)
        told = {**found.header["metrics"], "evaluated": evaluation.metrics(scores)}
        found._replace(header={**found.header, "metrics": told}).save(out, overwrite=True)
        _table(scores)


def _folders(inputs: list[str], out: Path, **how: Any) -> None:
    from ..merge import adapter_folders

    found = adapter_folders(inputs, out, **how)
    for notice in found.notices:
        typer.echo(f"notice: {notice}", err=True)
    worst = max(found.error.items(), key=lambda e: e[1])
    typer.echo(
        f"{found.folder}: {counted(len(found.error), 'module')}, largest relative error {worst[1]:.2g} at {worst[0]}"
    )


def _option(text: str) -> tuple[str, Any]:
    import yaml

    from ..core import CommonweightError

    name, equals, value = text.partition("=")
    if not equals:
        raise CommonweightError(f"--option {text}: wanted a name and a value, as in density=0.2")
    try:
        found = yaml.safe_load(value)
    except yaml.YAMLError as e:
        raise CommonweightError(f"--option {text}: {value!r} cannot be read") from e
    try:
        return name, float(found) if isinstance(found, str) else found
    except ValueError:
        return name, found


def _bytes(text: str) -> int:
    import re

    from ..core import CommonweightError

    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)b?\s*", text, re.IGNORECASE)
    if not found or float(found[1]) <= 0:
        raise CommonweightError(f"--shard-size {text}: wanted a size like 5GB or 500MB")
    return max(1, int(float(found[1]) * {"": 1, "k": 1e3, "m": 1e6, "g": 1e9}[found[2].lower()]))


class Bar:
    """A progress bar on stderr where that is a terminal; elsewhere nothing."""

    def __init__(self, total: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
        self._row = self._bar.add_task("merging", total=total)
        self._looked, self._total = 0, total

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, phase: str, n: int) -> None:
        if phase == "look":
            self._looked += n
            self._bar.update(self._row, description=f"merging (looked {self._looked / self._total:.1f} times)")
        else:
            self._bar.update(self._row, advance=n)
