"""What a method's client may ask of whoever runs it. A client is a generator: it yields an ask and is sent the answer.

So a method says what is to be computed, and an engine decides how: the asks of many clients become one mixed batch
(`simulate`), or each is answered where its rows are (Flower, torchrun).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.utils import get_total_norm

from ..core import CommonweightError

Pools = Mapping[str, Tensor]


class Train(NamedTuple):
    """Some optimiser steps on the client's rows from these trainable pools, as the run's `Local` recipe says.

    steps: None for the recipe's own number. moments: what an earlier `Trained` gave, to go on with the optimiser; {}
    to begin and be given them; None: nobody wants them. mask: of some pools, 1 where a number is trained and 0 where it
    stays as it is, of the pool's shape or one that broadcasts to it; what is not named is trained. first: steps of the
    round that came before, so that its rows go on where those ended. Answer: `Trained`.
    """

    pools: Pools
    steps: int | None = None
    moments: Mapping[str, Tensor] | None = None
    mask: Mapping[str, Tensor] | None = None
    first: int = 0


class Trained(NamedTuple):
    """pools: new ones; those given are not written. loss: the mean over the steps. moments: of the optimiser,
    {} where the ask had None."""

    pools: dict[str, Tensor]
    steps: int
    loss: float
    moments: dict[str, Tensor]


class Loss(NamedTuple):
    """The mean loss of these pools on one batch of the client's rows, without gradients: batch k is the same for every
    ask of a round. along: (seed, scale) pairs; the loss is that at pools + sum of scale * z(seed), where z(seed) of the
    pool `name` is ``core.directions.direction(seed, name, shape)``. moved: the pools that this moves; None: all.
    Answer: a float."""

    pools: Pools
    batch: int = 0
    along: tuple[tuple[int, float], ...] = ()
    moved: tuple[str, ...] | None = None


class Gradient(NamedTuple):
    """The gradient of the mean loss at these pools, on the batch that step `step` of the recipe trains on; the pools
    are not written. For clients that make the step by themselves. Answer: `Slope`."""

    pools: Pools
    step: int = 0


class Slope(NamedTuple):
    """gradients: of every trained pool; without clipping. loss: at the pools. steps: of a round, by the recipe."""

    gradients: dict[str, Tensor]
    loss: float
    steps: int


Ask = Train | Loss | Gradient


class Told(NamedTuple):
    """What a client begins with. tensors: what came down. start: the trainable pools' first values, rebuilt from the
    seed. keep: what it kept from the last round in which it took part ({} before the first)."""

    round: int
    client: int
    rows: int
    tensors: Pools
    start: Pools
    keep: Pools


class Sent(NamedTuple):
    """What a client ends with. tensors: what goes up; {}: it has no finite numbers to send, and what it kept before
    stays. keep: what stays with it. loss: for the curve; it stays too."""

    tensors: dict[str, Tensor]
    keep: dict[str, Tensor]
    loss: float | None = None


Client = Generator[Ask, Any, Sent]
NOTHING = Sent({}, {})


class Diverged(CommonweightError):
    """Raised by a client whose numbers cannot be sent in its method's form."""


def finite(answer: Any) -> bool:
    """Whether an answer to an ask has only finite numbers."""
    if isinstance(answer, float):
        return math.isfinite(answer)
    found = answer.pools if isinstance(answer, Trained) else answer.gradients if isinstance(answer, Slope) else {}
    each = [v for v in found.values() if v.numel()]
    return not each or math.isfinite(float(get_total_norm(each, math.inf)))


def drive(client: Client, answer: Callable[[Ask], Any]) -> Sent:
    """One client to its end."""
    return drive_all([client], lambda asks: [answer(ask) for _, ask in asks])[0]


def drive_all(clients: Sequence[Client], answer: Callable[[list[tuple[int, Ask]]], list[Any]]) -> list[Sent]:
    """All clients to their end, side by side. answer: (place of the client, its ask) of all that wait -> answers.

    A client whose answer is not finite ends there, with `NOTHING`: neither a vote nor what it keeps is made of NaN."""
    done: dict[int, Sent] = {}
    asks: list[tuple[int, Ask]] = []

    def send(place: int, value: Any) -> None:
        if not finite(value):
            clients[place].close()
            done[place] = NOTHING
            return
        try:
            asks.append((place, clients[place].send(value)))
        except StopIteration as end:
            done[place] = end.value
        except Diverged:
            done[place] = NOTHING

    for i in range(len(clients)):
        send(i, None)
    while asks:
        waiting, asks[:] = list(asks), []
        for (place, _), value in zip(waiting, answer(waiting), strict=True):
            send(place, value)
    return [done[i] for i in range(len(clients))]
