"""Collecting statistics of a model on rows: exact diagonal Fisher information, Gram matrices, activations."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ...core import CommonweightError, Rng, unknown
from ...core.statistics import Grams, add_squared, rows_of
from ...core.statistics import tokens as tokens_of
from .file import FINGERPRINT, Statistics, fingerprint

KINDS = ("fisher", "gram", "activations")
Labels = Literal["exact", "sample", "data"]
Batch = Mapping[str, Tensor]


def collect(
    model: nn.Module,
    batches: Iterable[Batch],
    kinds: Sequence[str] = ("fisher", "gram"),
    *,
    labels: Labels = "exact",
    tokens: int = 1024,
    seed: int = 0,
    names: Callable[[str], bool] = lambda name: True,
    header: Mapping[str, Any] | None = None,
) -> Statistics:
    """Statistics of the kinds wanted, by the model's own parameter names, each a mean over rows or tokens.

    batches: mappings of tensors, the rows along their first dimension; "attention_mask" says which tokens count, and
    "labels" (classes (B,), or token numbers (B, T) with -100 where none is scored) is no input of the model.
    names: which parameters. labels, of the Fisher information E_x E_y (d log p(y|x) / d theta)^2: "exact" sums over all
    classes y; "sample" draws one y of the model's own p for each row (for language models: for each token), which is
    the same in the mean; "data" takes the rows' labels, the empirical Fisher, which is another quantity.
    Cost of fisher: a forward pass of one row, and a backward pass for each y, so `exact` suits few classes. gram: one
    forward pass over the rows and d_in^2 numbers a linear layer.
    The header has a fingerprint of the weights, so that a merge refuses them beside another model.
    Raises: CommonweightError for unknown kinds, no rows, labels that are missing, or an output without logits.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise unknown("kind of statistics", str(kind), KINDS)
    rows = list(batches)
    if not rows:
        raise CommonweightError("no rows to collect statistics from")
    found: dict[str, Tensor] = {}
    was = model.training
    model.eval()
    try:
        if {"gram", "activations"} & set(kinds):
            found.update(_inputs(model, rows, kinds, tokens, names))
        if "fisher" in kinds:
            found.update({f"fisher/{n}": f for n, f in _fisher(model, rows, labels, seed, names).items()})
    finally:
        model.train(was)
    free = dict(model.named_parameters())
    of = {n: free[n].detach().reshape(-1) for n in dict.fromkeys(k.partition("/")[2] for k in found)}
    mark = fingerprint(
        {n: tuple(free[n].shape) for n in of}, lambda n, first, count: of[n][first : first + count].float().cpu()
    )
    about = {**(header or {}), "labels": labels, "kinds": list(kinds), FINGERPRINT: mark}
    return Statistics("statistics", found, about)


def _run(model: nn.Module, batch: Batch) -> Any:
    inputs: dict[str, Any] = {k: v for k, v in batch.items() if k != "labels"}
    return model(**inputs)


def _forward(model: nn.Module, batch: Batch) -> Tensor:
    out = _run(model, batch)
    scores = getattr(out, "logits", out)
    if not isinstance(scores, Tensor):
        raise CommonweightError(f"the model answers with a {type(out).__name__} without logits; give one with a head")
    return scores


@torch.no_grad()
def _inputs(
    model: nn.Module, batches: Sequence[Batch], kinds: Sequence[str], tokens: int, names: Callable[[str], bool]
) -> dict[str, Tensor]:
    grams = Grams("cpu")
    kept: dict[str, list[Tensor]] = {}
    mask: Tensor | None = None

    def see(name: str, x: Tensor) -> None:
        x = tokens_of(x.float(), mask)
        if "gram" in kinds:
            grams.add(name, x)
        room = tokens - sum(map(len, kept.get(name, [])))
        if "activations" in kinds and room > 0:
            kept.setdefault(name, []).append(x[:room].cpu())

    with _watched(model, see, names):
        for batch in batches:
            given = batch.get("attention_mask")
            mask = None if given is None else given.bool()
            _run(model, batch)
    out = {f"gram/{n}": grams.mean(n) for n in grams.sums}
    out.update({f"activations/{n}": torch.cat(parts) for n, parts in kept.items()})
    if not out:
        raise CommonweightError("the model ran no linear layer; gram and activations are of linear layers' inputs")
    return out


@contextmanager
def _watched(model: nn.Module, see: Callable[[str, Tensor], None], names: Callable[[str], bool]) -> Iterator[None]:
    """see(weight's name, input) whenever a linear layer runs; a weight that two layers share has one name.

    A weight that is worked out from others (of a shared model, or parametrised) is no parameter, and has none.
    """
    known = {id(p): n for n, p in model.named_parameters()}
    hooks = []
    for _, module in model.named_modules():
        name = known.get(id(module.weight)) if isinstance(module, nn.Linear) else None
        if name is not None and names(name):
            hooks.append(module.register_forward_pre_hook(partial(_hook, see, name)))
    try:
        yield
    finally:
        for h in hooks:
            h.remove()


def _hook(see: Callable[[str, Tensor], None], name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
    see(name, args[0])


def _fisher(
    model: nn.Module, batches: Sequence[Batch], labels: Labels, seed: int, names: Callable[[str], bool]
) -> dict[str, Tensor]:
    free = {n: p for n, p in model.named_parameters() if p.is_floating_point() and names(n)}
    if not free:
        raise CommonweightError("no parameter to collect the Fisher information of")
    asked = {n: p.requires_grad for n, p in free.items()}
    sums = {n: torch.zeros(p.shape) for n, p in free.items()}
    draw, count = Rng(seed, "fisher"), 0
    for p in free.values():
        p.requires_grad_(True)
    try:
        with torch.enable_grad():
            for batch in batches:
                for row in rows_of(batch):
                    for weight, value in _scores(_forward(model, row), row.get("labels"), labels, draw):
                        add_squared(sums, value, free, weight, again=labels == "exact")
                    count += 1
    finally:
        for n, p in free.items():
            p.requires_grad_(asked[n])
    return {n: total / count for n, total in sums.items()}


def _scores(scores: Tensor, truth: Tensor | None, labels: Labels, draw: Rng) -> Iterator[tuple[float, Tensor]]:
    """(weight, log p(y|x)) of one row's y: scores (1, C), or (1, T, C) where token t answers for token t + 1."""
    log = scores.float().log_softmax(-1)
    if log.shape[-1] < 2:
        raise CommonweightError("the model answers with one number; Fisher information is of a choice between classes")
    text = log.dim() == 3
    if truth is None and (labels == "data" or text):
        raise CommonweightError("the rows have no labels, which labels='data' and language models need")
    if text:
        assert truth is not None
        told = truth[0, 1:]
        log, told = log[0, :-1][told != -100], told[told != -100]
        if labels == "exact":
            raise CommonweightError("labels='exact' sums over all classes; a language model takes 'sample' or 'data'")
        if not len(told):
            return
    else:
        told = truth
    if labels == "data":
        assert told is not None
        yield 1.0, log.gather(-1, told.view(-1, 1)).sum()
    elif labels == "sample":
        u = draw.uniform((len(log), 1)).to(log.device)
        drawn = (log.detach().exp().cumsum(-1) < u).sum(-1, keepdim=True).clamp(max=log.shape[-1] - 1)
        yield 1.0, log.gather(-1, drawn).sum()
    else:
        for y, p in enumerate(log.detach().exp()[0].tolist()):
            yield p, log[0, y]
