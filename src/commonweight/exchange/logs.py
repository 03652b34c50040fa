"""A model as the log of its walk: steps of a few bytes, which a client plays from where it stands.

A step has a number of bytes that the method knows from its beginning. The server keeps the log, the pools at its end
and how far each client's copy is; a client keeps its pools and how far they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..core import CommonweightError
from .asks import Pools, Told
from .message import Part, Table
from .registry import Reply, Setting, State
from .walk import copied

BEGINS = Part((1,), "int32")


def begin(setting: Setting, start: Pools, dtype: torch.dtype) -> State:
    """log: of all steps; ends: how long it was after each."""
    empty = {"log": torch.empty(0, dtype=dtype), "ends": torch.zeros(1, dtype=torch.int64)}
    return State(copied(start, setting.travels) | empty, {"has": {}})


def down(steps: int, most: int, dtype: str) -> Table:
    """steps: that can have been made; most: numbers of one."""
    return {"begins": BEGINS, "log": Part((None,), dtype, steps * most)}


def tell(state: State, client: int) -> dict[str, Tensor]:
    """What a client does not have yet; one that the server does not know gets all."""
    has = state.facts["has"].get(str(client), 0)
    at = int(state.tensors["ends"][has])
    return {"begins": torch.tensor([has], dtype=torch.int32), "log": state.tensors["log"][at:].clone()}


def stands(setting: Setting, told: Told) -> tuple[dict[str, Tensor], int]:
    """(the pools that a client has, how many steps they are from the start)."""
    if "steps" in told.keep:
        return copied(told.keep, setting.travels), int(told.keep["steps"][0])
    return copied(told.start, setting.travels), 0


def missing(told: Told, have: int) -> int:
    """How many of the steps it was told it has already. Raises: CommonweightError where some in between are lost."""
    begins = int(told.tensors["begins"][0])
    if begins > have:
        raise CommonweightError(
            f"client {told.client}: it was told the steps from {begins} on and has the first {have}; what it kept is "
            "lost: let it take part under a new number"
        )
    return have - begins


def kept(pools: Pools, steps: int) -> dict[str, Tensor]:
    return {**pools, "steps": torch.tensor([steps], dtype=torch.int64)}


def grown(state: State, pools: Pools, entry: Tensor, replies: Sequence[Reply], seen: dict[str, float]) -> State:
    """With one step more. pools: after it. Who has answered had all steps before."""
    steps = len(state.tensors["ends"]) - 1
    log = torch.cat([state.tensors["log"], entry])
    ends = torch.cat([state.tensors["ends"], torch.tensor([len(log)])])
    has = {**state.facts["has"], **{str(r.client): steps for r in replies}}
    return State({**pools, "log": log, "ends": ends}, {"has": has}, seen)


def pools(setting: Setting, state: State) -> Pools:
    return {n: state.tensors[n] for n in setting.travels}


def mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)
