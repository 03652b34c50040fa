"""Pools that are moved along seeded directions where they are read, so that never more than one site's are held."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, Plan, Read
from ..core.directions import move_, moved_rows
from .asks import Loss

Moves = Sequence[tuple[int, float]]


@dataclass(frozen=True)
class Moving:
    """An address that reads pools + sum of scale * z(seed, name). each: of every pool its name and the moves of the n
    clients that it has in front; None: it stays. The pools are not written. Cost: the numbers of z in every reading."""

    address: Any
    each: tuple[tuple[str, tuple[Moves, ...]] | None, ...]

    def __call__(self, *pools: Tensor) -> Tensor:
        return self.address(*(p if one is None else moved(p, *one) for p, one in zip(pools, self.each)))


def moved(value: Tensor, name: str, moves: Sequence[Moves]) -> Tensor:
    """Shapes: value (n, ...), n moves -> as value."""
    out = value.detach().clone(memory_format=torch.contiguous_format)
    for one, mine in zip(out, moves):
        move_(one, name, mine)
    return out


def moving(plan: Plan, asks: Sequence[Loss], names: Sequence[str]) -> Plan:
    """The plan of n stacked tenants, each of which is read where its ask says. names: the pools that are trained.

    A pool that several sites read is moved once for each of them."""
    if not any(ask.along for ask in asks):
        return plan
    of = {
        n: (n, tuple(ask.along if ask.moved is None or n in ask.moved else () for ask in asks))
        for n in names
    }  # fmt: skip

    def read(one: Read) -> Read:
        each = tuple(of.get(p) for p in one.pools)
        return Read(Moving(one.address, each), one.pools) if any(each) else one

    return plan._replace(uses=tuple(replace_reads(u, read) for u in plan.uses))


def replace_reads(use: Any, read: Callable[[Read], Read]) -> Any:
    reads = {k: read(r) for k, r in use.reads.items()}
    return use._replace(reads=reads) if hasattr(use, "_replace") else replace(use, reads=reads)


@contextmanager
def along(model: nn.Module, moves: Moves, names: Sequence[str] | None = None) -> Iterator[None]:
    """Within it, a forward of a whole model is that at its parameters + sum of scale * z(seed, name).

    names: of the parameters that move, as `named_parameters` has them; None: all. A module's own parameters are moved
    when its forward begins, and are the old tensors, untouched, when it ends: exact to the bit, and never more than one
    module's twice; of an embedding only the rows that are read. No gradients. Raises: CommonweightError where a
    parameter was read without its module's forward.
    """
    known = {id(p): n for n, p in model.named_parameters() if names is None or n in names}
    resting: dict[int, Tensor] = {}
    left = set(known.values())

    def enter(module: nn.Module, _: Any) -> None:
        for p in module.parameters(recurse=False):
            if id(p) in known and id(p) not in resting:
                resting[id(p)] = p.data
                p.data = move_(p.data.clone(memory_format=torch.contiguous_format), known[id(p)], moves)
                left.discard(known[id(p)])

    def leave(module: nn.Module, *_: Any) -> None:
        for p in module.parameters(recurse=False):
            if id(p) in resting:
                p.data = resting.pop(id(p))

    def embed(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        name, weight = known[id(module.weight)], module.weight.data
        left.discard(name)
        rows, back = given[0].unique(return_inverse=True)
        return moved_rows(weight, name, moves, rows)[back].to(out.dtype)  # type: ignore[arg-type]

    hooks = []
    for module in model.modules():
        if type(module) is nn.Embedding and module.max_norm is None and id(module.weight) in known:
            hooks.append(module.register_forward_hook(embed))
        elif any(id(p) in known for p in module.parameters(recurse=False)):
            hooks += [
                module.register_forward_pre_hook(enter),
                module.register_forward_hook(leave, always_call=True),
            ]
    try:
        with torch.no_grad():
            yield
    finally:
        for hook in hooks:
            hook.remove()
        for p in model.parameters():
            if id(p) in resting:
                p.data = resting.pop(id(p))
    if left:
        raise CommonweightError(
            f"{min(left)}: was not moved ({len(left)} of {len(known)} parameters): its module's forward did not run; "
            "leave such parameters out by `names`"
        )


@torch.no_grad()
def step_(model: nn.Module, moves: Moves, names: Sequence[str] | None = None) -> None:
    """The parameters move in place, block by block: a step, or a model rebuilt from its sums."""
    for n, p in model.named_parameters():
        if names is None or n in names:
            move_(p.data, n, moves)


def mezo_step(
    model: nn.Module, loss: Callable[[], Tensor], seed: int, *, eps: float = 1e-3, rate: float = 1e-5,
    names: Sequence[str] | None = None,
) -> float:  # fmt: skip
    """One MeZO step of a whole model; gives the slope, which with the seed is all that the step was.

    loss: runs the model's forward on the step's rows. Memory: a forward's, and one module's parameters.
    Source: arXiv 2305.17333, algorithm 1. Differs: it perturbs in place and takes back by arithmetic, which leaves the
    rounding of three additions in every parameter; here parameters that are moved are not written.
    """
    found = []
    for scale in (eps, -eps):
        with along(model, [(seed, scale)], names):
            found.append(float(loss()))
    slope = (found[0] - found[1]) / (2 * eps)
    step_(model, [(seed, -rate * slope)], names)
    return slope
