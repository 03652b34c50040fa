"""What else a model's own layers want to lose beside a task: routers' losses, and those of early exits."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import CommonweightError
from ...host.sites.norm import is_norm
from .base import Wrapped
from .scored import IGNORE, output_layer, places


class Beside(Wrapped):
    """A task to whose loss is added what layers with ``beside()`` say of their last pass; all else is the task's."""

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        exits = next((m for m in model.modules() if hasattr(getattr(m, "walk", None), "scores")), None)
        head, last = output_layer(model), []
        hook = None if head is None else head.register_forward_hook(lambda m, x, y: last.append(y))
        try:
            total = self.task.loss(model, batch)
        finally:
            if hook is not None:
                hook.remove()
        for module in speaking(model):
            if (more := module.beside()) is not None:
                total = total + more.to(total.dtype)
        if exits is not None and exits.walk.scores and "labels" in batch:  # type: ignore[union-attr]
            total = total + of_exits(model, exits, batch["labels"], last[-1])
        return total


def speaking(model: nn.Module) -> list[Any]:
    """The layers that have a loss of their own."""
    return [m for m in model.modules() if hasattr(m, "beside")]


def of_exits(model: nn.Module, form: Any, labels: Tensor, last: Tensor) -> Tensor:
    """The sum over exits of weight (CE + KL(last || exit)) + BCE(score, both say the same), each a mean over scored
    tokens. last: the head's logits in the end, where scored: (B, S, V)."""
    where, what = places(labels)
    norm, head = read_out(model)
    mask = what != IGNORE
    if last.shape[:2] != where.shape:
        last = last.gather(1, where[..., None].expand(-1, -1, last.shape[-1]))
    final, total = last.detach()[mask].float(), torch.zeros((), device=last.device)
    for x, score in form.walk.scores.values():
        states = x.gather(1, where[..., None].expand(-1, -1, x.shape[-1]))[mask]
        logits = head(norm(states)).float()
        ce = F.cross_entropy(logits, what[mask])
        kl = F.kl_div(logits.log_softmax(-1), final.log_softmax(-1), reduction="batchmean", log_target=True)
        same = (logits.argmax(-1) == final.argmax(-1)).float()
        total = total + form.weight * (ce + kl)
        total = total + F.binary_cross_entropy_with_logits(score.gather(1, where)[mask], same)
    return total


def read_out(model: nn.Module) -> tuple[nn.Module, nn.Module]:
    """(the norm behind the blocks, the head). Raises: CommonweightError of a model where they are not found."""
    head, base = output_layer(model), getattr(model, str(getattr(model, "base_model_prefix", "")), model)
    norms = [m for m in base.children() if is_norm(m)]
    if head is None or not norms:
        raise CommonweightError(f"{type(model).__name__}: no norm and head behind the blocks that an exit could read")
    return norms[-1], head
