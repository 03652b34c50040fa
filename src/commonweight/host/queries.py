"""What the plain base makes of each row, for those who go by it: a pass of its own, before the one that asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, Plan, Site, counted
from .apart import Unfit
from .current import Current, Pass
from .front import kept_whole
from .sites import Physical
from .states import recomputing


def refuse(plan: Plan, sites: Sequence[Site], table: str | None) -> None:
    """table: the site that turns tokens into vectors. Raises: CommonweightError where prompts are chosen by what is of
    another width than an attention's keys."""
    entry = next((s.out for s in sites if s.name == table), None)
    state = next((s.inp for s in sites if s.kind == "block"), None)
    for use in plan.uses:
        if getattr(use.bind, "asks", False):
            wide = entry if getattr(use.bind, "by", "base") == "embeddings" else state
            one_width(use.site, wide, plan.pools[use.reads["K0"].pools[0]].shape[-1])


def one_width(site: str, wide: int | None, keys: int) -> None:
    """wide: of what a row is told by; None where that is not known. Raises: CommonweightError for another width."""
    if wide not in (None, keys):
        raise CommonweightError(
            f"{site}: what a row is told by is {wide} wide, the keys of its attention {keys}; prompts are asked for "
            "where both are one, take prefix-tuning here"
        )


class Queries:
    """A row's query: the mean over its tokens of what the last block gives, (d,), without gradients or dropout.

    Of a tower with several lists of blocks each has its own. Cost: one pass of the base for each pass that asks.
    What a checkpoint computes again in backward finds those of its own pass.
    """

    def __init__(self, modules: Mapping[str, Physical], current: Current):
        blocks = {n: at.module for n, at in modules.items() if at.kind == "block"}
        self.last = {n.rpartition(".")[0]: (n, m) for n, m in blocks.items()}  # list of blocks -> its last one
        self.current = current

    def of(self, site: str, rows: int) -> Tensor:
        """(rows, d). Raises: CommonweightError under torch.compile, and where the site is in no list of blocks."""
        if torch.compiler.is_compiling():
            raise CommonweightError(
                f"{site}: what a row is asked for comes of a pass before the one that is compiled; call the model "
                "without torch.compile"
            )
        home = max((h for h in self.last if site.startswith(f"{h}.")), key=len, default=None)
        if home is None:
            raise CommonweightError(f"{site}: it is in no list of blocks, whose last one would say what a row means")
        found = self.found().get(home)
        if found is None or len(found) != rows:
            seen = "nothing" if found is None else counted(len(found), "row")
            raise Unfit(f"{site}: {counted(rows, 'row')} ask here, and the plain base said {seen}", site)
        return found

    def found(self) -> Mapping[str, Tensor]:
        """Of the pass that runs: made when the first site asks."""
        run = self.current.thread.run
        if run.queries is None or not (run.given or self.current.replayed or recomputing()):
            if run.given is None or run.given[0] is None:
                raise CommonweightError(
                    "a row's query comes of the whole model's input; call the model, not a part of it"
                )
            run.queries = self.made(*run.given)
        return run.queries

    def of_batch(self, model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        """(rows, d), of a model's inputs, outside of a pass; of several lists of blocks the first one's."""
        return next(iter(self.made(model, (), batch).values()))

    @torch.no_grad()
    def made(self, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Tensor]:
        thread, out = self.current.thread, {}
        asking = thread.asking
        training = [m for m in model.modules() if m.training]
        handles = [m.register_forward_hook(partial(self.heard, out, h, n)) for h, (n, m) in self.last.items()]
        thread.asking = True
        for m in training:
            m.training = False
        try:
            with thread.aside(Pass(model, args, kwargs)), self.current.within(None), kept_whole(model):
                model.forward(*args, **{k: v for k, v in kwargs.items() if k != "labels"})
        finally:
            for m in training:
                m.training = True
            for h in handles:
                h.remove()
            thread.asking = asking
        return out

    def heard(self, out: dict[str, Tensor], home: str, site: str, module: nn.Module, args: tuple, y: Any) -> None:
        x = (y[0] if isinstance(y, tuple) else y).float()
        there = self.current.there(site, x)
        if there is None:
            out[home] = x.mean(1)
        else:
            mask = there[..., None].to(x)
            out[home] = (x * mask).sum(1) / mask.sum(1).clamp(min=1)
