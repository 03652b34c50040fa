"""The mean of a row's input embeddings, for those who go by it: what a row says before any block has read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, counted
from .apart import Unfit
from .current import Current, Pass
from .states import recomputing


@torch.compiler.disable(reason="what a row's tokens are is looked for beside what is traced")
def embedded(site: str, rows: int, current: Current) -> Tensor:
    """(rows, d) in float32: the mean over the tokens of each row, padding aside, of their entries in the base's own
    table, without gradients. Made when the first site of a pass asks, and kept for its others.

    Raises: CommonweightError for a part of a model that is called alone, and for a model that is given no token ids;
    Unfit where the site is given other rows than the model.
    """
    run = current.thread.run
    if run.embedded is None or not (run.given or current.replayed or recomputing()):
        if run.given is None or run.given[0] is None:
            raise CommonweightError(f"{site}: a row's embedding comes of the whole model's input; call the model")
        run.embedded = of_pass(site, run)
    if len(run.embedded) != rows:
        told = f"{counted(rows, 'row')} ask here, and the model was given {counted(len(run.embedded), 'row')}"
        raise Unfit(f"{site}: {told}; make the tenant without this site", site)
    return run.embedded


def of_batch(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The same of a model's inputs, outside of a pass."""
    return of_pass("a batch", Pass(model, (), batch))


@torch.no_grad()
def of_pass(site: str, run: Pass) -> Tensor:
    assert run.given is not None
    model, _, named = run.given
    x = named.get("inputs_embeds")
    if x is None:
        if run.ids is None or run.ids.dim() != 2 or run.ids.is_floating_point():
            raise CommonweightError(f"{site}: a row's embedding is one of token ids; give the model input_ids")
        table: Any = next(m for m in model.modules() if hasattr(m, "get_input_embeddings")).get_input_embeddings()
        x = table.forward(run.ids)  # its hooks, which are tenants', left aside
    mask = run.masks.get("attention_mask")
    real = x.new_ones(*x.shape[:2], 1) if not isinstance(mask, Tensor) else (mask != 0)[..., None]
    if real.shape[:2] != x.shape[:2]:
        raise Unfit(f"{site}: {tuple(x.shape[:2])} tokens, under a mask of {tuple(real.shape[:2])}", site)
    return (x.float() * real).sum(1) / real.sum(1).clamp(min=1)
