"""Language modelling with a teacher: its whole distribution at every scored token, and its hidden states."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import CommonweightError, config, option, unknown
from . import scored
from .base import Wrapped
from .lm import LM
from .scored import IGNORE


def forward_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(p_T || p_S), for each row of logits (n, V)."""
    return F.kl_div(student.log_softmax(-1), teacher.log_softmax(-1), reduction="none", log_target=True).sum(-1)


def reverse_kl(teacher: Tensor, student: Tensor) -> Tensor:
    """KL(p_S || p_T)."""
    return forward_kl(student, teacher)


def jsd(teacher: Tensor, student: Tensor) -> Tensor:
    """The mean of both divergences from the mean distribution."""
    t, s = teacher.log_softmax(-1), student.log_softmax(-1)
    mean = torch.logaddexp(t, s) - torch.log(torch.tensor(2.0))
    return 0.5 * ((t.exp() * (t - mean)).sum(-1) + (s.exp() * (s - mean)).sum(-1))


def tvd(teacher: Tensor, student: Tensor) -> Tensor:
    """Half the sum of absolute differences of probabilities."""
    return 0.5 * (teacher.softmax(-1) - student.softmax(-1)).abs().sum(-1)


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward-kl": forward_kl, "reverse-kl": reverse_kl, "jsd": jsd, "tvd": tvd,
}  # fmt: skip


@config
class Distillation:
    """How much of what a teacher says counts."""

    loss: str = option("forward-kl", "forward-kl, reverse-kl, jsd or tvd between the two distributions")
    share: float = option(0.5, "share of that loss; the rest is the cross entropy of the text", ge=0, le=1)
    temperature: float = option(1.0, "both logits are divided by it", gt=0)
    tail: int = option(0, "so many last blocks also learn the teacher's hidden states", ge=0)
    tail_weight: float = option(1.0, "weight of that, as a share of the teacher's mean square", ge=0)

    def check(self) -> str | None:
        if self.loss not in LOSSES:
            return str(unknown("loss", self.loss, LOSSES))
        return None


class Distilled(Wrapped):
    """A language modelling task whose loss is (1 - share) CE + share D(p_T, p_S) + tail_weight * hidden states' error.

    teacher: in eval mode, with the same tokens. It sees what the student sees, packed rows too. All else, the measures
    of dev rows as well, is the task's. Cost: a forward pass of the teacher for each batch, and its logits.
    Source: LLM-Neo, arXiv 2411.06839, whose KL is not shifted while its labels are: ours is of the same tokens.
    """

    def __init__(self, task: LM, teacher: nn.Module, how: Distillation):
        super().__init__(task)
        self.teacher, self.how = teacher.eval(), how

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        labels, how = batch["labels"], self.how
        with torch.no_grad(), _tails(self.teacher, how.tail) as theirs:
            teacher, _ = scored.logits(self.teacher, inputs, labels)
        with _tails(model, how.tail) as ours:
            student, what = scored.logits(model, inputs, labels)
        mask = what != IGNORE
        if teacher.shape[-1] != student.shape[-1]:
            raise CommonweightError(
                f"the teacher has {teacher.shape[-1]} tokens, the model {student.shape[-1]}; both must have the same"
            )
        t, s = teacher[mask].float() / how.temperature, student[mask].float() / how.temperature
        ce = F.cross_entropy(student[mask].float(), what[mask], reduction="sum")
        total = (1 - how.share) * ce + how.share * LOSSES[how.loss](t, s).sum()
        total = total / max(1, self.task.items(batch))
        for a, b in zip(theirs, ours):
            if a.shape != b.shape:
                raise CommonweightError(
                    f"tail: the teacher's blocks answer {tuple(a.shape)}, the model's {tuple(b.shape)}; leave tail out"
                )
            total = total + how.tail_weight * F.mse_loss(b.float(), a.float()) / a.float().square().mean() / how.tail
        return total


@contextmanager
def _tails(model: nn.Module, n: int) -> Any:
    """Within it, what the last n blocks answer."""
    from ...host.sites import blocks

    seen: list[Tensor] = []

    def keep(_: nn.Module, __: Any, y: Any) -> None:
        seen.append(y[0] if isinstance(y, tuple) else y)

    names = blocks(model)[-n:] if n else []
    handles = [model.get_submodule(name).register_forward_hook(keep) for name in names]
    try:
        yield seen
    finally:
        for h in handles:
            h.remove()
