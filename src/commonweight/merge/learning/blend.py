"""The merged model as a differentiable function of what is learned, and the one loop that learns it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from ...core import CommonweightError, counted
from ..inputs.given import given

State = dict[str, Tensor]
Call = Callable[..., Any]
Forward = Callable[[Call, Any, int], Tensor]  # (merged model, batch, task) -> logits (B, classes), or a loss ()


@dataclass(frozen=True)
class Blend:
    """A model whose parameters may be put together anew at every call. base: name -> (*shape); tau: (T, *shape)."""

    model: nn.Module
    base: State
    tau: State

    @property
    def count(self) -> int:
        return len(next(iter(self.tau.values())))

    def state(self, share: Callable[[str, Tensor], Tensor]) -> State:
        """base + share(name, task vectors (T, *shape)) (*shape) of every parameter; differentiable in what it uses."""
        return {n: b + share(n, self.tau[n]) for n, b in self.base.items()}

    def weighted(self, coefficients: Callable[[str], Tensor], mask: Mapping[str, Tensor] | None = None) -> State:
        """theta_0 + sum_t coefficients(name)_t tau_t (times the mask)."""

        def share(name: str, tau: Tensor) -> Tensor:
            update = torch.tensordot(coefficients(name), tau, 1)
            return update if mask is None else update * mask[name]

        return self.state(share)

    def call(self, state: Mapping[str, Tensor]) -> Call:
        return lambda *args, **kwargs: functional_call(self.model, dict(state), args, kwargs)


def blend(model: nn.Module, models: Sequence[Any], base: Any) -> Blend:
    """The parameters of `model` that are floating point, with what every source has by the same names.

    model: gives the computation only; it is put in evaluation mode and its own weights are not used where the sources
    have them. Memory: T + 1 times the parameters in float32. Raises: CommonweightError when a parameter of a source is
    missing or of another shape, or none is found.
    """
    if not models:
        raise CommonweightError("no models to merge were given")
    sources, root, _ = given(models, base)
    if root is None:
        raise CommonweightError("base is missing; give the model that the others were trained from")
    device = next(model.parameters()).device
    start, tau = {}, {}
    for name, p in model.named_parameters():
        if name not in root.shapes or not p.is_floating_point():
            continue
        for s in (root, *sources):
            if s.shapes.get(name) != tuple(p.shape):
                raise CommonweightError(f"{name}: {s.label} has {s.shapes.get(name)}, the model {tuple(p.shape)}")
        start[name] = root.read(name).detach().float().to(device)
        tau[name] = torch.stack([s.read(name).detach().float().to(device) - start[name] for s in sources])
    if not start:
        raise CommonweightError("the base has no parameter of the model by its name; give the model's own state dict")
    model.eval()
    return Blend(model, start, tau)


def logits(call: Call, batch: Any, task: int) -> Tensor:
    """The usual forward: keyword inputs from a mapping, else one input; the output's logits, or the output itself."""
    out = call(**batch) if isinstance(batch, Mapping) else call(batch)
    return getattr(out, "logits", out)


def entropy(scores: Tensor) -> Tensor:
    """Mean over rows of the entropy of softmax(scores), in nats. scores (..., classes)."""
    log = scores.float().log_softmax(-1)
    return -(log.exp() * log).sum(-1).mean()


def cross_entropy(call: Call, batch: Any, task: int) -> Tensor:
    """The usual loss: batch["labels"] against the logits of the rest, labels of -100 left out."""
    inputs = {k: v for k, v in batch.items() if k != "labels"}
    return F.cross_entropy(logits(call, inputs, task).float(), batch["labels"])


def check_data(data: Sequence[Iterable[Any]], tasks: int) -> list[list[Any]]:
    """One list of batches a task. Raises: CommonweightError for another number of tasks, or a task without batches."""
    found = [list(batches) for batches in data]
    if len(found) != tasks or not all(found):
        sizes = [len(b) for b in found]
        raise CommonweightError(
            f"data has {sizes} batches a task for {counted(tasks, 'model')}; give each task at least one"
        )
    return found


def minimise(
    leaves: Iterable[Tensor],
    loss: Callable[[int], Tensor],
    *,
    steps: int,
    lr: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    after: Callable[[], None] | None = None,
) -> list[float]:
    """AdamW steps on `leaves`; loss(step) is built anew each time. Returns the loss before every step.

    after: done to the leaves after each step (a projection). Raises: CommonweightError when the loss is no number.
    """
    leaves = list(leaves)
    for leaf in leaves:
        leaf.requires_grad_(True)
    optimizer = torch.optim.AdamW(leaves, lr=lr, betas=betas, weight_decay=weight_decay)
    seen = []
    with torch.enable_grad():
        for step in range(steps):
            value = loss(step)
            if not value.isfinite():
                raise CommonweightError(f"step {step}: the loss is {value.item()}; look at the rows, or lower the rate")
            seen.append(value.item())
            gradients = torch.autograd.grad(value, leaves, allow_unused=True)
            for leaf, g in zip(leaves, gradients):
                leaf.grad = g
            optimizer.step()
            if after is not None:
                with torch.no_grad():
                    after()
    for leaf in leaves:
        leaf.requires_grad_(False)
        leaf.grad = None
    return seen
