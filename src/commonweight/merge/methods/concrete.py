"""Concrete subspaces: one learned mask, shared by all task vectors, of the coordinates in which they get along."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn

from ..call.declare import method
from ..learning.blend import Blend, Forward, State, blend, check_data, entropy, logits, minimise
from ..maths.parts import combine, deltas
from ..registry import At, Beside, Range
from ..statistics import Statistics

Mask = Annotated[Any, Beside("mask", each=False)]


def rescaled(mask: Tensor) -> Tensor:
    """A mask of mean 1, so that what is left is as long as what was there."""
    return mask / mask.mean().clamp(min=1e-6)


def drawn(scores: Tensor, temperature: float, draw: torch.Generator) -> Tensor:
    """One draw of the Concrete relaxation of Bernoulli(sigmoid(scores))."""
    u = torch.rand(scores.shape, generator=draw).clamp(1e-6, 1 - 1e-6).to(scores.device)
    return torch.sigmoid((u.log() - (1 - u).log() + scores) / temperature)


def settled(scores: State, temperature: float, final: str, draw: torch.Generator) -> State:
    """The mask to keep: the relaxation at its median, 0 and 1, or a draw."""
    forms: dict[str, Callable[[Tensor], Tensor]] = {
        "soft": lambda s: torch.sigmoid(s / temperature),
        "hard": lambda s: (s > 0).float(),
        "draw": lambda s: drawn(s, temperature, draw),
    }
    return {n: rescaled(forms[final](s)) for n, s in scores.items()}


def inner(whole: Blend, c: Tensor, mask: State, loss: Any, lr: float) -> Tensor:
    """One gradient step of the coefficients (T,), the mask held still."""
    c = c.detach().requires_grad_(True)
    value = loss(whole.weighted(lambda name: c, {n: m.detach() for n, m in mask.items()}))
    return (c - lr * torch.autograd.grad(value, c)[0]).detach()


def learn(
    model: nn.Module,
    models: Sequence[Any],
    base: Any,
    data: Sequence[Iterable[Any]],
    *,
    forward: Forward = logits,
    scale: float = 0.3,
    inner_lr: float | None = None,
    temperature: float = 0.5,
    init: float = 0.0,
    steps: int = 2000,
    lr: float = 1e-3,
    final: Literal["soft", "hard", "draw"] = "soft",
    seed: int = 0,
) -> Statistics:
    """A mask as large as the model that lowers the merged model's mean entropy, summed over tasks.

    data, forward: as adamerging.learn(). inner_lr: the inner level takes one gradient step of task-wise coefficients
    from `scale` before each step of the mask (the paper's bi-level form, to first order); None: they stay at `scale`
    (its Concrete task arithmetic, whose coefficient is a setting). Trained numbers: as many as the model has. The
    mask kept is the relaxation at its median (final="soft"), 0 and 1 ("hard"), or one more draw, as the authors' code
    has it ("draw").
    Source: arXiv 2312.06173 and the authors' code (FusionBench), whose temperature, rates and steps are the defaults.
    Differs: the inner level is a plain gradient step, there one of Adam, and the authors train the coefficients once
    more with the mask found. Memory: T + 4 models in float32.
    """
    whole = blend(model, models, base)
    batches = check_data(data, whole.count)
    draw = torch.Generator().manual_seed(seed)
    scores = {n: torch.full_like(b, init) for n, b in whole.base.items()}
    start = torch.full((whole.count,), scale, device=next(iter(scores.values())).device)

    def value(state: State, step: int) -> Tensor:
        call = whole.call(state)
        return torch.stack([entropy(forward(call, b[step % len(b)], t)) for t, b in enumerate(batches)]).sum()

    def loss(step: int) -> Tensor:
        mask = {n: rescaled(drawn(s, temperature, draw)) for n, s in scores.items()}
        c = start if inner_lr is None else inner(whole, start, mask, lambda s: value(s, step), inner_lr)
        return value(whole.weighted(lambda name: c, mask), step)

    losses = minimise(scores.values(), loss, steps=steps, lr=lr)
    mask = settled(scores, temperature, final, draw)
    found = {f"mask/{n}": m.cpu() for n, m in mask.items()}
    return Statistics("mask", found, {"method": "concrete", "scale": scale, "losses": losses})


@method(
    "concrete",
    paper="Concrete Subspace Learning based Interference Elimination for Multi-task Model Fusion, arXiv 2312.06173",
    equation="theta = theta_0 + scale sum_t w_t m tau_t; m a relaxed Bernoulli mask of mean 1, the same for every task",
    data="unlabeled",
    learn=learn,
)
def concrete(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    mask: Mask,
    scale: Annotated[float, Range()] = 0.3,
) -> Tensor:
    """mask: what concrete.learn() found, or its file; scale: as it was learned with. A tensor without a mask (a buffer)
    stays the base's.
    """
    if not mask.has("mask", at.name):
        return base.clone()
    return base + scale * combine(deltas(tensors, base), weights) * mask.piece("mask", at, base)
