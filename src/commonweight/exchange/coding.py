"""Codecs around a method: a layer between it and the engine, of which the method knows nothing.

What goes up are changes: of an answer's floats against what came down under the same name, or what the method says
are changes already. e_t = change_t + lost_(t-1) is coded, lost_t = e_t - C(e_t) stays with the client, by number. The
server adds what arrives to what it told, in float32, and hands the sums to the method. What is not of floats travels
as it is.

What comes down is coded as it is, each round anew, and the server's own numbers stay float32, so that nothing adds up:
a change is against what came. With feedback="both" it is the change of what clients have heard: see `broadcast`.

Source: error feedback, arXiv 1901.09847, algorithm 2; both ways, arXiv 1905.05957 (DoubleSqueeze). Differs: an answer
that does not count is lost with what it made up for, as every answer is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..core import CommonweightError
from . import broadcast, codes
from .answers import Answers, InOrder
from .asks import Client, Diverged, Pools, Sent, Told
from .codes import Shapes
from .message import Facts, Part, Refused, Table, kind, pack, payload
from .registry import Coding, Gather, Method, Reply, Setting, State

NAME = "coded"  # of the coded bytes in a message
LOST = f"{broadcast.MINE}lost/"


def of_run(method: Method, config: Any, up: str | None, down: str | None, feedback: str) -> Coding | None:
    """What a run's messages are coded by; None: by nothing. up, down, feedback: the run's own options.

    Raises: CommonweightError where this method has none."""
    if method.coding is not None:
        if up is not None or down is not None:
            raise CommonweightError(
                f"codec, codec_down: {method.name} has codecs of its own; give its options, or another method"
            )
        return method.coding(config)
    if up is None and down is None:
        return None
    for option, way, codec in (("codec", "up", up), ("codec_down", "down", down)):
        if codec is not None and (why := method.uncoded(config, way)):
            raise CommonweightError(f"{option}={codec}: {method.name} cannot: {why}")
    if feedback == "both" and not method.broadcast:
        raise CommonweightError(
            f"codec_feedback=both: {method.name} cannot: it tells each client other numbers, so that there is no "
            "broadcast whose loss could be sent with the next one; wanted clients"
        )
    return Coding(up, down, feedback)


def floats(table: Table) -> dict[str, Part]:
    """The parts that codecs carry: floats, so many of them each time."""
    return {n: p for n, p in table.items() if p.fixed and kind(p.dtype).is_floating_point}


def shapes(parts: Table) -> Shapes:
    return {n: tuple(p.shape) for n, p in parts.items()}  # type: ignore[misc]


def coded_table(table: Table, codec: str) -> Table:
    """The table of a message whose floats are coded."""
    mine = floats(table)
    rest = {n: p for n, p in table.items() if n not in mine}
    return {**rest, NAME: codes.part(codec, shapes(mine))} if mine else table


def coded(table: Table, codec: str, tensors: Pools) -> dict[str, Tensor]:
    """A message of `coded_table`. Raises: Refused for numbers too large for the codec."""
    mine = floats(table)
    if not mine:
        return dict(tensors)
    rest = {n: v for n, v in tensors.items() if n not in mine}
    return {**rest, NAME: codes.write(codec, {n: tensors[n] for n in mine})}


def decoded(table: Table, codec: str, tensors: Pools) -> dict[str, Tensor]:
    """The tensors of the method's own table. Raises: Refused."""
    mine = floats(table)
    if not mine:
        return dict(tensors)
    found = codes.read(codec, shapes(mine), tensors[NAME])
    return {n: found[n].to(kind(p.dtype)) if n in mine else tensors[n] for n, p in table.items()}


def own(keep: Pools) -> dict[str, Tensor]:
    """What a client kept for its method."""
    return {n: v for n, v in keep.items() if not n.startswith(broadcast.MINE)}


@dataclass(frozen=True)
class Layer:
    """A method and the codecs around it. Its functions are those of a `Method`."""

    method: Method
    coding: Coding

    # -- down ------------------------------------------------------------------------------------------------------

    def begin(self, setting: Setting, start: Pools) -> State:
        state = self.method.begin(setting, start)
        return broadcast.begin(self.method, self.coding, setting, state, start) if self.both else state

    def down(self, setting: Setting, round: int, client: int) -> Table:
        if self.both:
            return broadcast.table(setting)
        table = self.method.down(setting, round, client)
        return table if self.coding.down is None else coded_table(table, self.coding.down)

    def tell(self, setting: Setting, state: State, round: int, client: int) -> Pools:
        if self.both:
            return broadcast.tell(setting, state, round, client)
        told = self.method.tell(setting, state, round, client)
        if self.coding.down is None:
            return told
        return coded(self.method.down(setting, round, client), self.coding.down, told)

    def came(self, setting: Setting, told: Told) -> tuple[Pools, dict[str, Tensor]]:
        """(what came down, as the method would have it; what a client keeps of it). Raises: Refused."""
        if self.both:
            return broadcast.heard(self.method, self.coding, setting, told)
        if self.coding.down is None:
            return told.tensors, {}
        return decoded(self.method.down(setting, told.round, told.client), self.coding.down, told.tensors), {}

    @property
    def both(self) -> bool:
        return self.coding.feedback == "both" and self.coding.down is not None

    # -- up --------------------------------------------------------------------------------------------------------

    def up(self, setting: Setting, round: int, client: int) -> Table:
        table = self.method.up(setting, round, client)
        return table if self.coding.up is None else coded_table(table, self.coding.up)

    def against(self, setting: Setting, round: int, client: int) -> set[str]:
        """The floats of an answer that take the place of what came down."""
        if self.method.sends == "changes":
            return set()
        down = self.method.down(setting, round, client)
        return {n for n, p in floats(self.method.up(setting, round, client)).items() if down.get(n) == p}

    def client(self, setting: Setting, told: Told) -> Client:
        try:
            got, kept = self.came(setting, told)
        except Refused as e:
            raise Diverged(f"{setting.method}: what came down cannot be read: {e}") from e
        sent = yield from self.method.client(setting, told._replace(tensors=got, keep=own(told.keep)))
        if not sent.tensors:
            return sent
        if self.coding.up is None:
            return sent._replace(keep={**sent.keep, **kept})
        try:
            tensors, lost = self.code(setting, told, sent.tensors, got)
        except Refused as e:
            raise Diverged(f"{setting.method}: its change is too large for {self.coding.up}: {e}") from e
        return Sent(tensors, {**sent.keep, **kept, **lost}, sent.loss)

    def code(
        self, setting: Setting, told: Told, tensors: Pools, got: Pools
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """(what is sent, what it loses)."""
        at, codec = (setting, told.round, told.client), self.coding.up
        assert codec is not None
        table, against = self.method.up(*at), self.against(*at)
        values = {n: v - got[n] if n in against else v for n, v in tensors.items()}
        if self.coding.feedback == "none" or not floats(table):
            return coded(table, codec, values), {}
        places = {} if self.method.places is None else self.method.places(*at)
        before = {n.removeprefix(LOST): v for n, v in told.keep.items() if n.startswith(LOST)}
        for n in floats(table).keys() & before.keys():
            values[n] = values[n] + (before[n][places[n][0]] if n in places else before[n])
        sent = coded(table, codec, values)
        arrives = decoded(table, codec, sent)
        for n in floats(table):
            lost = values[n] - arrives[n]
            if n in places:
                where, many = places[n]
                lost = before.get(n, lost.new_zeros(many)).index_copy(0, where, lost)
            before[n] = lost
        return sent, {f"{LOST}{n}": v for n, v in before.items()}

    def check(self, setting: Setting, round: int, client: int, tensors: Pools) -> None:
        """Whether an answer decodes. Raises: Refused."""
        if self.coding.up is not None:
            tensors = decoded(self.method.up(setting, round, client), self.coding.up, tensors)
        if self.method.check is not None:
            self.method.check(setting, round, client, tensors)

    # -- the server ------------------------------------------------------------------------------------------------

    def through(self, gather: Gather) -> Gather:
        def run(setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
            mine = broadcast.own(state)
            new = gather(setting, mine, round, self.opened(setting, mine, round, replies))
            if not self.both:
                return new
            who = replies.clients if isinstance(replies, InOrder) else [r.client for r in replies]
            return broadcast.after(self.method, self.coding, setting, state, new, round, who)

        return run

    def opened(self, setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> Sequence[Reply]:
        """The answers as the method would have them, decoded once."""
        if self.coding.up is None:
            return replies
        out, same = Answers(), None
        for r in replies:
            table = self.method.up(setting, round, r.client)
            tensors = decoded(table, self.coding.up, r.tensors)
            against = self.against(setting, round, r.client)
            if same is None or not self.method.broadcast:
                same = self.method.tell(setting, state, round, r.client)
            tensors = {n: added(same[n], v) if n in against else v for n, v in tensors.items()}
            about = Facts(setting.method, setting.run, setting.base, round, r.client, r.rows)
            out.put(r.client, r.rows, pack(about, tensors, table), table)
        return InOrder(out)

    def gather(self, setting: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
        return self.through(self.method.gather)(setting, state, round, replies)

    def idle(self, setting: Setting, state: State, round: int) -> State:
        if not self.both:
            return state
        return broadcast.after(self.method, self.coding, setting, state, broadcast.own(state), round, ())

    def pools(self, setting: Setting, state: State) -> Pools:
        return self.method.pools(setting, broadcast.own(state))

    def nbytes(self, setting: Setting, round: int, client: int) -> tuple[int, int]:
        return payload(self.up(setting, round, client)), payload(self.down(setting, round, client))


def added(value: Tensor, change: Tensor) -> Tensor:
    """Their sum, which stays finite: whether a number is too large to be used, the round tells."""
    most = torch.finfo(value.dtype).max
    return (value.double() + change.double()).clamp(-most, most).to(value.dtype)


def around(method: Method, coding: Coding | None) -> Method:
    """The method with its messages coded; without a coding, itself."""
    if coding is None or (coding.up is None and coding.down is None):
        return method
    layer = Layer(method, coding)
    each = [method.each] if method.each != "nothing" else []
    if coding.up is not None and coding.feedback != "none":
        each.append("what its codec lost")
    if layer.both:
        each.append("the pools as it heard them")
    return replace(
        method, begin=layer.begin, down=layer.down, tell=layer.tell, up=layer.up, client=layer.client,
        gather=layer.gather, pools=layer.pools, nbytes=layer.nbytes, check=layer.check, through=layer.through,
        idle=layer.idle, broadcast=method.broadcast and not layer.both, each="; ".join(each) or "nothing",
        formula=f"{method.formula}; these coded, {words(coding)}",
        keeps=method.keeps + ("; the pools as clients heard them, and how they came to be" if layer.both else ""),
    )  # fmt: skip


def words(coding: Coding) -> str:
    """For people."""
    ways = (f"{way} by {codec}" for way, codec in (("up", coding.up), ("down", coding.down)) if codec is not None)
    return ", ".join(ways)
