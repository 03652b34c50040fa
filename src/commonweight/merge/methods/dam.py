"""DAM: a merge masked twice, by what all tasks can use and by what a backdoor would."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import CommonweightError
from ..call.declare import method
from ..learning.blend import Forward, State, blend, check_data, entropy, logits, minimise
from ..registry import At, Range
from ..statistics import Statistics
from .concrete import Mask, concrete, drawn, rescaled

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
    safety: float = 0.1,
    temperature: float = 0.5,
    steps: int = 2000,
    lr: float = 1e-3,
    trigger_lr: float = 1e-4,
    compat: Literal["official"] | None = None,
    seed: int = 0,
) -> Statistics:
    """The mask of a merge that answers surely to clean inputs, and to inputs on which a trigger was put.

    At every step a trigger for each task (one change of the input, the same for all rows, at first none) takes a step
    of Adam that moves the merged model's answers away from those to clean inputs; then a Concrete mask (see `concrete`)
    takes one on L_perf + safety * L_safe, the entropy of the answers without and with the trigger, summed over tasks.
    Default: two masks by turns, kept is their product: the Task-Shared mask on that sum, and the complement of the
    Backdoor-Detection mask on L_safe alone. compat="official": the authors' code has the one mask.

    data: batches WITHOUT labels, a list for each task; the trigger goes where `perturb` puts it: text models need
    batches of `inputs_embeds`. Source: arXiv 2410.13910 by its abstract (the paper's text was not available), and the
    authors' code in FusionBench (safe Concrete), from which all but the second mask is: its start at -2 and the taking
    of turns are ours. Differs: images are not clamped to [0, 1]; coefficients stay at `scale`, where the authors'
    AdaMerging forms train them too. Memory: T + 6 models in float32. Cost: four passes over a batch a task and step.
    """
    whole = blend(model, models, base)
    batches = check_data(data, whole.count)
    draw = torch.Generator().manual_seed(seed)
    shared = {n: torch.zeros_like(b) for n, b in whole.base.items()}
    bad = {} if compat else {n: torch.full_like(b, -2.0) for n, b in whole.base.items()}
    triggers = [perturb(b[0], None)[1].detach() for b in batches]
    aim = torch.optim.Adam(triggers, lr=trigger_lr)
    c = torch.full((whole.count,), scale, device=next(iter(shared.values())).device)

    def answers(state: State, step: int, triggered: bool) -> list[Tensor]:
        call = whole.call(state)
        pairs = [(b[step % len(b)], d) for b, d in zip(batches, triggers)]
        return [forward(call, perturb(b, d)[0] if triggered else b, t) for t, (b, d) in enumerate(pairs)]

    def move(state: State, step: int) -> None:
        with torch.no_grad():
            clean = [a.argmax(-1) for a in answers(state, step, False)]
        for d in triggers:
            d.requires_grad_(True)
        away = torch.stack([F.cross_entropy(a, y) for a, y in zip(answers(state, step, True), clean)]).sum()
        for d, g in zip(triggers, torch.autograd.grad(-away, triggers)):
            d.grad = g
            d.requires_grad_(False)
        aim.step()

    def loss(step: int) -> Tensor:
        detecting = bool(bad) and step % 2 == 1
        kept = {n: drawn(s.detach() if detecting else s, temperature, draw) for n, s in shared.items()}
        for n, s in bad.items():
            kept[n] = kept[n] * (1 - drawn(s if detecting else s.detach(), temperature, draw))
        state = whole.weighted(lambda name: c, {n: rescaled(k) for n, k in kept.items()})
        move({n: t.detach() for n, t in state.items()}, step)
        safe = torch.stack([entropy(a) for a in answers(state, step, True)]).sum()
        if detecting:
            return safe
        return torch.stack([entropy(a) for a in answers(state, step, False)]).sum() + safety * safe

    losses = minimise([*shared.values(), *bad.values()], loss, steps=steps, lr=lr)
    soft = {n: torch.sigmoid(s / temperature) for n, s in shared.items()}
    soft |= {n: soft[n] * (1 - torch.sigmoid(s / temperature)) for n, s in bad.items()}
    header = {"method": "dam", "scale": scale, "losses": losses[:: 2 if bad else 1]}
    return Statistics("mask", {f"mask/{n}": rescaled(m).cpu() for n, m in soft.items()}, header)


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
