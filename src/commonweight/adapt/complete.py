"""A second pass in which no token skips anything, which teaches the first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from ..core import CommonweightError
from ..host import Host
from .tasks.base import Wrapped


class Complete(Wrapped):
    """A task whose loss is L(gated) + L(complete) + KL(complete || gated): L the task's own, complete the pass in which
    every gate of a token is open, gated the other. The KL is a mean over rows, of what the classes get; nothing of it
    goes back through the complete pass. Cost: a step takes two passes, and keeps what both need.

    Source: arXiv 2403.11808; github.com/NUS-HPC-AI-Lab/Dynamic-Tuning @d1744f0, engine_finetune.py.
    Raises: CommonweightError for a task whose model does not answer each row with one line of logits.
    """

    def __init__(self, task: Any, host: Host):
        super().__init__(task)
        self.host = host

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        with _logits(model) as said:
            gated = self.task.loss(model, dict(batch))
            with self.host.complete():
                complete = self.task.loss(model, dict(batch))
        if [t.dim() for t in said] != [2, 2]:
            raise CommonweightError(
                "complete: a second pass teaches the classes of each row (task classify); this task's model gives "
                f"{', '.join(str(tuple(t.shape)) for t in said) or 'no logits'}. Take complete=False"
            )
        return gated + complete + divergence(*said)


def divergence(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits (B, K), the mean over rows; the teacher has no gradient."""
    log_p, log_q = student.float().log_softmax(-1), teacher.detach().float().log_softmax(-1)
    return F.kl_div(log_p, log_q, reduction="batchmean", log_target=True)


def taught(host: Host, parts: Sequence[Any]) -> Any:
    """The task of a run's parts, within `Complete` where the tenant's method has a second pass.

    Raises: CommonweightError for one of several tenants, whose rows it would change too."""
    asking = [p.tenant for p in parts if p.tenant.method.complete and p.tenant.method.complete(p.tenant.config)]
    if asking and len(parts) > 1:
        raise CommonweightError(
            f"{asking[0].name}: {asking[0].method.name} with complete=True has two passes a step, which the other "
            "tenants' rows would have too; train it alone"
        )
    return Complete(parts[0].task, host) if asking else parts[0].task


@contextmanager
def _logits(model: nn.Module) -> Iterator[list[Tensor]]:
    """Within it, the logits of each pass of the model."""
    said: list[Tensor] = []

    def keep(module: nn.Module, args: Any, answer: Any) -> None:
        if isinstance(found := getattr(answer, "logits", None), Tensor):
            said.append(found)

    handle = model.register_forward_hook(keep)
    try:
        yield said
    finally:
        handle.remove()
