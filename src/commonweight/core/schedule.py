"""What a method may do between the steps of a training run, said as data: pure functions of a step that was taken."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, runtime_checkable

from torch import Tensor

from .errors import CommonweightError
from .types import Plan

Pools = Mapping[str, Tensor]
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
    weight (out, inp) of a site. counted: what a `Counting` schedule counted in the step's passes, summed.
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
    """

    values: Pools = NONE
    masks: Pools = NONE
    resting: frozenset[str] | None = None
    rates: Mapping[str, float] = NONE
    moments: Pools = NONE
    held: Pools = NONE


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


def last_of(share: float, steps: int) -> int:
    """The last step of a first stage that has this share of the steps: it has one at least, and leaves one."""
    return min(max(1, round(share * steps)), max(1, steps - 1))


def later_half(step: int, last: int) -> bool:
    """Whether a step is of the later half of a stage that ends with the step `last`, in which scores are gathered."""
    return last - 1 < 2 * step <= 2 * last
