"""A broadcast in few bytes: the coded change of what clients have heard. What one codes away, the next ones send.

Server and clients hold the same copy of the pools, which begins as the first ones. Each round the server codes what its
own are beyond the copy, and both sides add what arrives. A client that missed rounds is sent these changes too; where
that is longer than the copy itself, it is sent the copy. How far a client is, the server knows from its answers alone:
one that is further, as its answer was lost, passes over what it has.

Source: arXiv 1905.05957 (DoubleSqueeze) in the form of arXiv 2106.05203 (EF21), whose state is the copy: what was lost
is the pools less the copy. Differs: the log for clients that take part in some rounds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError
from . import codes
from .asks import Pools, Told
from .codes import Shapes
from .message import Part, Table
from .registry import Coding, Method, Setting, State

MINE = "codec/"  # before what is the layer's, in a state and in what a client keeps
COPY, LOG, AT = f"{MINE}copy/", f"{MINE}log", f"{MINE}at"
FACTS = "codec"
WHOLE = -1  # in place of the round in which a log begins: it is the copy itself
MOST = 1e37  # of a change's number; ours: what sums of squares and the steps of codecs make of it is still a float32


def own(state: State) -> State:
    """What is the method's."""
    facts = {k: v for k, v in state.facts.items() if k != FACTS}
    return State({n: v for n, v in state.tensors.items() if not n.startswith(MINE)}, facts, state.seen)


def table(setting: Setting) -> Table:
    """begins: the round of the first change. log: coded changes, or the copy in float32."""
    return {f"{MINE}begins": Part((1,), "int32"), LOG: Part((None,), "uint8", 4 * setting.count)}


def names(method: Method, setting: Setting, round: int) -> Shapes:
    """What a round's broadcast has. All of it are pools that travel."""
    return {n: tuple(p.shape) for n, p in method.down(setting, round, -1).items()}  # type: ignore[misc]


def begin(method: Method, coding: Coding, setting: Setting, state: State, start: Pools) -> State:
    """With the first round's change. ends: (round, bytes) of every change in the log; has: client -> last round."""
    copy = {f"{COPY}{n}": start[n].float().clone() for n in setting.travels}
    log = {LOG: torch.empty(0, dtype=torch.uint8)}
    empty = State({**state.tensors, **copy, **log}, {**state.facts, FACTS: {"ends": [], "has": {}}}, state.seen)
    return grown(method, coding, setting, empty, state, 0)


def after(
    method: Method, coding: Coding, setting: Setting, old: State, new: State, round: int, answered: Collection[int]
) -> State:
    """With the change that the next round begins with. new: the method's own state; answered: clients that have heard
    this round's."""
    about = old.facts[FACTS]
    facts = {**new.facts, FACTS: {**about, "has": {**about["has"], **{str(c): round for c in answered}}}}
    mine = {n: v for n, v in old.tensors.items() if n.startswith(MINE)}
    return grown(method, coding, setting, State({**new.tensors, **mine}, facts, new.seen), new, round + 1)


def grown(method: Method, coding: Coding, setting: Setting, state: State, theirs: State, round: int) -> State:
    """With one change more. The oldest go where all are longer than the copy, which is then sent in their place."""
    assert coding.down is not None
    there, copy = names(method, setting, round), {n: state.tensors[f"{COPY}{n}"] for n in setting.travels}
    told = method.tell(setting, theirs, round, -1)
    change = {n: (told[n].double() - copy[n].double()).clamp(-MOST, MOST).float() for n in there}
    entry = codes.write(coding.down, change)
    for n, v in codes.read(coding.down, there, entry).items():
        copy[n] = copy[n] + v
    ends, log = [*state.facts[FACTS]["ends"], [round, len(entry)]], torch.cat([state.tensors[LOG], entry])
    while len(ends) > 1 and len(log) > 4 * setting.count:
        log, ends = log[ends[0][1] :], ends[1:]
    tensors = {**state.tensors, **{f"{COPY}{n}": v for n, v in copy.items()}, LOG: log.clone()}
    return State(tensors, {**state.facts, FACTS: {**state.facts[FACTS], "ends": ends}}, state.seen)


def tell(setting: Setting, state: State, round: int, client: int) -> dict[str, Tensor]:
    """The changes that a client lacks, or the copy."""
    ends, log = state.facts[FACTS]["ends"], state.tensors[LOG]
    first = state.facts[FACTS]["has"].get(str(client), WHOLE) + 1
    size = sum(b for r, b in ends if r >= first)
    if first < ends[0][0] or size > 4 * setting.count:
        copy = torch.cat([state.tensors[f"{COPY}{n}"].reshape(-1) for n in setting.travels])
        return _message(WHOLE, copy.view(torch.uint8))
    return _message(first, log[len(log) - size :])


def _message(begins: int, log: Tensor) -> dict[str, Tensor]:
    return {f"{MINE}begins": torch.tensor([begins], dtype=torch.int32), LOG: log.clone()}


def heard(method: Method, coding: Coding, setting: Setting, told: Told) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the round's tensors, as they are in the copy; what a client keeps). Raises: Refused; CommonweightError where
    what it kept is lost."""
    begins, log = int(told.tensors[f"{MINE}begins"][0]), told.tensors[LOG]
    shapes = {n: tuple(told.start[n].shape) for n in setting.travels}
    if begins == WHOLE:
        copy = codes.plain(shapes, log)
    else:
        copy = _played(method, coding, setting, told, begins, log)
    kept: Mapping[str, Any] = {f"{COPY}{n}": v for n, v in copy.items()}
    there = method.down(setting, told.round, told.client)
    tensors = {n: copy[n].to(told.start[n].dtype) for n in there}
    return tensors, {**kept, AT: torch.tensor([told.round], dtype=torch.int64)}


def _played(
    method: Method, coding: Coding, setting: Setting, told: Told, begins: int, log: Tensor
) -> dict[str, Tensor]:
    assert coding.down is not None
    have = int(told.keep[AT][0]) if AT in told.keep else WHOLE
    if begins > have + 1:
        raise CommonweightError(
            f"client {told.client}: it was told what changed from round {begins} on and has heard round {have}; what "
            "it kept is lost: let it take part under a new number"
        )
    copy = {n: told.keep.get(f"{COPY}{n}", told.start[n].float()) for n in setting.travels}
    for round in range(begins, told.round + 1):
        change, log = codes.take(coding.down, names(method, setting, round), log)
        for n, v in change.items() if round > have else ():
            copy[n] = copy[n] + v
    return copy
