"""What a method may do between the steps of a training run, said as data: pure functions of a step that was taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from .errors import CommonweightError
from .types import Plan

Pools = Mapping[str, Tensor]
Places = tuple[Tensor | None, ...]  # for each dimension the old place of each new one, -1: none; None: as it was
State = Mapping[str, Tensor]  # what a schedule remembers; it lies in the run's checkpoints


NONE: Mapping[str, Any] = MappingProxyType({})


def _none(site: str) -> Tensor:
    raise CommonweightError(f"{site}: this schedule wants the base's weight, and no base is at hand")


def _unknown(values: Pools) -> float:
    raise CommonweightError("this schedule wants the loss of rows: Scheduled.after(step, loss), a function of nothing")


class Moment(NamedTuple):
    """A step that the optimiser has just taken.

    step: how many there were, this one among them. steps: of the whole run. pools: as they are now, the trained ones
    and the frozen ones that the tenant's file holds. grads: of this step, after clipping; a pool that rests has none.
    moments: the optimiser's own tensors by their names there ("exp_avg"), then by pool. loss: of the step's last batch,
    without dropout and penalties, if some pools had other values; cost: a forward pass each time. weight: the frozen
    weight (out, inp) of a site. counted: what a `Counting` or `Watching` schedule made of the step's passes, summed.
    """

    step: int
    steps: int
    pools: Pools
    grads: Pools
    moments: Mapping[str, Pools]
    loss: Callable[[Pools], float] = _unknown
    weight: Callable[[str], Tensor] = _none
    counted: Pools = NONE


class Edit(NamedTuple):
    """What is to be other from now on. All of it is by the names of trained pools, and may be empty.

    values: numbers in place of a pool's; also of a frozen one that the tenant's file holds. masks: 0 where a number of
    the pool is zero and stays it, in place of an earlier mask. resting: the pools that get no gradients, all of them;
    None: as before. rates: factors on the pools' learning rates, in place of earlier ones. moments: factors (numbers in
    the pool's shape, or one) on the optimiser's tensors; 0 forgets. held: masks, 1 where a number of the pool stays
    what it is now, whatever the optimiser does; in place of an earlier one.

    config: of the method, by which the plan is made anew, of a schedule that says `resizes`. Pools that it lacks go,
    with their moments; it brings no trained one. Those that have another shape in it are in `places`, and all else here
    is of that shape: values, masks and moments that were there are carried (see `carried`), and of new places the
    values are those given here, else 0, the moments 0, and the optimiser's count of steps goes on.
    """

    values: Pools = NONE
    masks: Pools = NONE
    resting: frozenset[str] | None = None
    rates: Mapping[str, float] = NONE
    moments: Pools = NONE
    held: Pools = NONE
    config: Any = None
    places: Mapping[str, Places] = NONE


def carried(old: Tensor, places: Places, fill: float | Tensor = 0.0) -> Tensor:
    """A tensor in its new shape. fill: of new places, a number, or a tensor of the new shape."""
    sizes = [n if at is None else len(at) for n, at in zip(old.shape, places, strict=True)]
    new = fill.to(old).clone() if isinstance(fill, Tensor) else old.new_full(sizes, fill)
    there = [torch.arange(n) if at is None else (at >= 0).nonzero()[:, 0] for n, at in zip(old.shape, places)]
    here = [i if at is None else at[i] for i, at in zip(there, places)]
    new[_grid(there, new)] = old[_grid(here, old)]
    return new


def _grid(at: Sequence[Tensor], like: Tensor) -> tuple[Tensor, ...]:
    """Indices that take the places of each dimension, crosswise."""
    return tuple(a.to(like.device).view(-1, *[1] * (len(at) - 1 - i)) for i, a in enumerate(at))


def resizing(schedule: Any) -> bool:
    """Whether a schedule may make the plan anew: its class then says ``resizes = True``."""
    return getattr(schedule, "resizes", False)


class Schedule(Protocol):
    """A frozen dataclass of a method's file, with pure functions. Random numbers come from `core.rng` and the step.

    settled: from when on what a run ends with can be kept: a better score of dev rows counts from then on.
    """

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]: ...
    def after(self, at: Moment, state: State) -> tuple[State, Edit]: ...
    def settled(self, step: int, steps: int) -> bool: ...


@runtime_checkable
class Counting(Protocol):
    """A schedule that listens to its tenant's routers.

    count: of a pass, what they said, (n, E) logits and (n,) 1 or, for padding, 0 at each site that was heard, and the
    pools as they were -> tensors that may be summed over the passes of a step, always of the same names and shapes.
    """

    def count(self, said: Mapping[str, tuple[Tensor, Tensor]], pools: Pools) -> Pools: ...


@runtime_checkable
class Watching(Protocol):
    """A schedule that is shown states: what its tenant's binds `show` in passes with gradients, and what gradient the
    step's loss has by it, before clipping. What is recomputed in a backward pass is not shown again.

    blank: zeros of all names and shapes that the other two give. states: (n, d) of the tenant's own tokens at a site,
    and (n,) 1 or, for padding, 0. grads: the same of the gradient. Both -> tensors that may be summed over the passes
    of a step, in which the tenant may also have no row; no state is kept. It is shown none once it is `settled`.
    """

    def blank(self, pools: Pools) -> Pools: ...
    def states(self, site: str, states: Tensor, real: Tensor) -> Pools: ...
    def grads(self, site: str, grads: Tensor, real: Tensor) -> Pools: ...


def last_of(share: float, steps: int) -> int:
    """The last step of a first stage that has this share of the steps: it has one at least, and leaves one."""
    return min(max(1, round(share * steps)), max(1, steps - 1))


def later_half(step: int, last: int) -> bool:
    """Whether a step is of the later half of a stage that ends with the step `last`, in which scores are gathered."""
    return last - 1 < 2 * step <= 2 * last
