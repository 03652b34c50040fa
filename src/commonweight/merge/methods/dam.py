"""DAM: a merge masked twice, by what all tasks can use and by what a backdoor would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import CommonweightError
from ..blend import Forward, State, blend, check_data, entropy, logits, minimise
from ..registry import At, Range, method
from ..statistics import Statistics
from .concrete import Mask, concrete, relaxed, rescaled

Scale = Annotated[float, Range()]
Perturb = Callable[[Any, Tensor | None], tuple[Any, Tensor]]  # (batch, trigger) -> (batch with it, its place's zeros)


def add(batch: Any, trigger: Tensor | None) -> tuple[Any, Tensor]:
    """Adds the trigger to the batch's one floating-point input (images, embeddings), the same in every row."""
    if isinstance(batch, Tensor):
        return (batch if trigger is None else batch + trigger), torch.zeros_like(batch[:1])
    name = next((k for k, v in batch.items() if v.is_floating_point()), None)
    if name is None:
        raise CommonweightError(
            f"dam: no floating-point input among {', '.join(batch)} to put a trigger on; give embeddings, or perturb="
        )
    changed, zeros = add(batch[name], trigger)
    return {**batch, name: changed}, zeros


def learn(
    model: nn.Module,
    models: Sequence[Any],
    base: Any,
    data: Sequence[Iterable[Any]],
    *,
    forward: Forward = logits,
    perturb: Perturb = add,
    scale: float = 0.3,
    safety: float = 1.0,
    temperature: float = 0.5,
    steps: int = 500,
    lr: float = 1e-3,
    trigger_lr: float = 1e-2,
    seed: int = 0,
) -> Statistics:
    """One mask, the product of the Task-Shared and the complement of the Backdoor-Detection mask.

    In turn, at every step: a trigger for each task (one change of the input, the same for all rows) moves so that the
    merged model's answers change most; then both masks, Concrete as in `concrete`, take a step on
    L_perf + safety * L_safe: the entropy of the answers to clean inputs, and to inputs with the trigger. The
    Backdoor-Detection mask sees L_safe alone. data: batches WITHOUT labels, a list for each task; the trigger goes
    where `perturb` puts it: text models need batches of `inputs_embeds`.
    Differs: the abstract and FusionBench's relative of it (safe Concrete) are what this was written from; the paper's
    schedule of alternation may be another. Memory: T + 6 models in float32.
    """
    whole = blend(model, models, base)
    batches = check_data(data, whole.count)
    draw = torch.Generator().manual_seed(seed)
    shared = {n: torch.zeros_like(b) for n, b in whole.base.items()}
    bad = {n: torch.full_like(b, -2.0) for n, b in whole.base.items()}
    triggers = [perturb(b[0], None)[1].detach() for b in batches]
    c = torch.full((whole.count,), scale, device=next(iter(shared.values())).device)

    def answers(state: State, step: int, with_trigger: bool) -> list[Tensor]:
        call = whole.call(state)
        pairs = [(b[step % len(b)], d) for b, d in zip(batches, triggers)]
        return [forward(call, perturb(b, d)[0] if with_trigger else b, t) for t, (b, d) in enumerate(pairs)]

    def both(free_shared: bool) -> State:
        kept = {n: relaxed(s if free_shared else s.detach(), temperature, draw) for n, s in shared.items()}
        safe = {n: 1 - torch.sigmoid(s if not free_shared else s.detach()) for n, s in bad.items()}
        return whole.weighted(lambda name: c, {n: rescaled(kept[n] * safe[n]) for n in kept})

    def aim(step: int) -> None:
        state = {n: t.detach() for n, t in both(True).items()}
        clean = [a.argmax(-1) for a in answers(state, step, False)]
        free = [d.requires_grad_(True) for d in triggers]
        away = torch.stack([F.cross_entropy(a, y) for a, y in zip(answers(state, step, True), clean)]).sum()
        for d, g in zip(free, torch.autograd.grad(away, free)):
            d.requires_grad_(False).add_(g.sign(), alpha=trigger_lr)

    def loss(step: int) -> Tensor:
        aim(step)
        total = torch.stack([entropy(a) for a in answers(both(False), step, True)]).sum()
        state = both(True)
        perf = torch.stack([entropy(a) for a in answers(state, step, False)]).sum()
        return perf + safety * torch.stack([entropy(a) for a in answers(state, step, True)]).sum() + total

    losses = minimise([*shared.values(), *bad.values()], loss, steps=steps, lr=lr)
    found = {n: rescaled(torch.sigmoid(shared[n] / temperature) * (1 - torch.sigmoid(bad[n]))).cpu() for n in shared}
    header = {"method": "dam", "scale": scale, "losses": losses}
    return Statistics("mask", {f"mask/{n}": m for n, m in found.items()}, header)


@method(
    "dam",
    paper="Mitigating the Backdoor Effect for Multi-Task Model Merging via Safety-Aware Subspace, arXiv 2410.13910",
    equation="theta = theta_0 + scale sum_t w_t m_shared (1 - m_backdoor) tau_t, masks by L_perf + safety L_safe",
    data="unlabeled",
    learn=learn,
)
def dam(
    tensors: Sequence[Tensor], base: Tensor, *, weights: Sequence[float], at: At, mask: Mask, scale: Scale = 0.3
) -> Tensor:
    """mask: what dam.learn() found, or its file; scale: as it was learned with."""
    return concrete.function(tensors, base, weights=weights, at=at, mask=mask, scale=scale)
