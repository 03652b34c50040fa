"""Trans-LoRA: a tenant moves to another base by texts that a model writes, a discriminator keeps and it answers.

Source: the abstract of arXiv 2405.17258, the caption of its figure 1, and summaries; there is no code, and the text
could not be read. From there: a discriminator that is an adapter of the source model and tells real texts from written
ones; texts that the target model writes after about five seeds; those that the discriminator accepts; the source's
tenant as the teacher of the target's. Ours, since they were not found: the words around the seeds, how many texts are
written, drawn at which temperature, cross entropy and a threshold of one half for the discriminator, and what is
learnt: the teacher's greedy answers, as texts, for two bases may have other tokens. Where they have the same,
`share.heal` with a method learns the teacher's probabilities of the same rows.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..core import CommonweightError, build, config, option
from ..host import Host
from ..methods import either
from .base import tokenizer_of
from .recipe import Recipe
from .rows import Row
from .train import Result, adapt

REAL, WRITTEN = "real", "written"
HEAD = "### Example\n"


@config
class Writing:
    """How texts are written, and which are taken. All numbers but `shots` are ours."""

    rows: int = option(200, "texts that are wanted", ge=1)
    shots: int = option(5, "seeds that stand before each text", ge=1)
    most: int = option(8, "texts that are written for each that is wanted, before it is given up", ge=1)
    temperature: float = option(1.0, "of the draws", gt=0)
    length: int = option(64, "tokens of a text at most", ge=1)
    answer: int = option(64, "tokens of the teacher's answer at most", ge=1)
    threshold: float = option(0.5, "probability of being real from which a text is taken", ge=0, le=1)
    batch: int = option(16, "texts that are written at once", ge=1)
    seed: int = option(0, "of seeds and draws", ge=0)
    frame: str = option("{}", "a prompt, with {} where the text stands: seeds and texts are written without it")


class Moved(NamedTuple):
    """result: of the target's training. rows: prompts and completions of it. written: texts the discriminator saw."""

    result: Result
    rows: list[Row]
    written: int


def continued(host: Host, reader: str | None, prompts: Sequence[str], length: int, **how: Any) -> list[str]:
    """What a causal model says after each prompt, as a tenant or as the plain base, without special tokens."""
    model: Any = host.model
    tokenizer = tokenizer_of(model)
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left").to(model.device)
    batch.pop("token_type_ids", None)
    with torch.no_grad(), host.route(reader):
        out = model.generate(**batch, max_new_tokens=length, pad_token_id=tokenizer.pad_token_id, **how)
    at = batch["input_ids"].shape[1]
    said = (tokenizer.batch_decode(ids, skip_special_tokens=True) for ids in (out, out[:, at:]))
    # Many tokenizers leave out the space before what they decode; behind its prompt it is there.
    return [whole.removeprefix(p) if whole.startswith(p) else new for p, whole, new in zip(prompts, *said)]


def texts(host: Host, seeds: Sequence[str], how: Writing) -> Iterator[list[str]]:
    """Batches of texts that the plain base writes after seeds, without empty ones, the seeds and those it has said."""
    choose, said = random.Random(how.seed), {*seeds}
    for at in range(0, how.most * how.rows, how.batch):
        shown = (choose.sample([*seeds], min(how.shots, len(seeds))) for _ in range(how.batch))
        prompts = ["".join(f"{HEAD}{s}\n" for s in some) + HEAD for some in shown]
        with torch.random.fork_rng():
            torch.manual_seed(how.seed * 1_000_003 + at)
            drawn = {"do_sample": True, "temperature": how.temperature, "top_k": 0, "top_p": 1.0}
            found = continued(host, None, prompts, how.length, **drawn)
        new = dict.fromkeys(t for t in (whole(f) for f in found) if t and t not in said)
        said.update(new)
        yield [*new]


def whole(text: str) -> str:
    """A text up to where the next example begins."""
    return text.split(HEAD.strip())[0].strip()


def discriminator(
    host: Host, name: str, real: Sequence[str], written: Sequence[str], method: str | Any = "lora", **more: Any
) -> Result:
    """A tenant of a host for classify that tells real texts from written ones. more: as for `adapt`."""
    both = (REAL, _listed("real", real)), (WRITTEN, _listed("written", written))
    rows = [{"text": t, "label": label} for label, some in both for t in some]
    return adapt(host, name, rows, method=method, labels=(REAL, WRITTEN), **more)


def judging(host: Host, name: str) -> None:
    """Raises: CommonweightError for a tenant that tells something else than real and written texts."""
    if tuple(host[name].labels or ()) != (REAL, WRITTEN):
        raise CommonweightError(f"{name} has the labels {host[name].labels}; wanted a tenant that `discriminator` made")


def reality(host: Host, name: str, given: Sequence[str]) -> Tensor:
    """(n,): how probably each text is real, says a discriminator."""
    judging(host, name)
    batch = tokenizer_of(host.model)(list(given), return_tensors="pt", padding=True, truncation=True)
    batch.pop("token_type_ids", None)
    with torch.no_grad(), host.route(name):
        device = next(host.model.parameters()).device
        return host.model(**batch.to(device)).logits.float().softmax(-1)[:, 0].cpu()


def _listed(what: str, some: Sequence[str]) -> Sequence[str]:
    """Raises: CommonweightError where these are no texts: none, one text in place of a list, an empty one."""
    if isinstance(some, str) or not some or not all(isinstance(t, str) and t.strip() for t in some):
        raise CommonweightError(f"{what}: wanted a list of texts, none of them empty; got {str(some)[:60]!r}")
    return some


def _check(source: Host, tenant: str, target: Host, name: str, judges: Host, judge: str, how: Writing) -> None:
    """All that can be wrong before a text is written. Raises: CommonweightError."""
    for what, host in (("source", source), ("target", target)):
        if not callable(getattr(host.model, "generate", None)):
            raise CommonweightError(
                f"transfer: {what} is a host of a {type(host.model).__name__}, which writes no texts; wanted one of a "
                "causal language model, as open_host(model, 'lm') gives it"
            )
    source[tenant]
    target.roster.free(name)
    judging(judges, judge)
    if "{}" not in how.frame:
        raise CommonweightError(
            f"Writing: frame={how.frame!r} has no {{}} where a text stands, so that all prompts are one"
        )


def transfer(
    source: Host,
    tenant: str,
    target: Host,
    name: str,
    seeds: Sequence[str],
    *,
    judges: Host,
    judge: str,
    writing: Mapping[str, Any] | None = None,
    method: str | Any = "lora",
    options: Mapping[str, Any] | None = None,
    **more: Any,
) -> Moved:
    """Adds to `target` a tenant that does what `tenant` does on `source`, without the rows that this was trained on.

    source, target: hosts of causal models. seeds: some real texts, about five; `Writing.frame` makes prompts of texts.
    judges, judge: a host for classify of the source's base, and its tenant that `discriminator` made. writing: fields
    of `Writing`. more: as for `adapt`.
    Cost: most * rows texts at the worst, `rows` answers, and the training.
    Raises: CommonweightError, before a text is written, for whatever of these cannot be; and where the discriminator
    takes no text.
    """
    how, taken, written = build(Writing, writing or {}), [], 0
    _check(source, tenant, target, name, judges, judge, how)
    _listed("seeds", seeds)
    if isinstance(method, str):
        build(either(method).config, options or {})
    build(Recipe, {k: v for k, v in more.items() if k in Recipe.__dataclass_fields__})
    for some in texts(target, seeds, how):
        written += len(some)
        if some:
            real = reality(judges, judge, some)
            taken += [t for t, p in zip(some, real.tolist()) if p >= how.threshold]
        if len(taken) >= how.rows:
            break
    if not taken:
        raise CommonweightError(
            f"transfer: of {written} texts that the target wrote {judge} took none at threshold={how.threshold}; lower "
            "it, or give seeds that the target can go on from"
        )
    rows: list[Row] = []
    for at in range(0, len(taken[: how.rows]), how.batch):
        prompts = [how.frame.replace("{}", t) for t in taken[: how.rows][at : at + how.batch]]
        answers = continued(source, tenant, prompts, how.answer, do_sample=False)
        rows += [{"prompt": p, "completion": a} for p, a in zip(prompts, answers) if a.strip()]
    return Moved(adapt(target, name, rows, task="lm", method=method, options=options, **more), rows, written)
