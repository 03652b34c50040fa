"""A round on the server's side, said in bytes, and a client's answer to it: what every engine carries.

Both are pure but for what they are given: an engine brings bytes from one to the other.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from .answers import Answers, InOrder
from .asks import Client, Pools, Sent, Told
from .message import SERVER, Facts, Refused, Table, bound, of_client, pack, read_facts, unpack, without
from .privacy import gather as private
from .registry import Method, Reply, Setting, State


def facts(setting: Setting, round: int, client: int = SERVER, rows: int = 0) -> Facts:
    return Facts(setting.method, setting.run, setting.base, round, client, rows)


def down(method: Method, setting: Setting, state: State, round: int, client: int = SERVER) -> bytes:
    """What is sent to a client; to all of a round the same where the method broadcasts."""
    told = method.tell(setting, state, round, client)
    return pack(facts(setting, round), told, method.down(setting, round, client))


def heard(method: Method, setting: Setting, data: bytes, round: int, client: int) -> dict[str, Tensor]:
    """What came down, as tensors. Raises: Refused."""
    return unpack(data, method.down(setting, round, client), facts(setting, round))[1]


def told(
    method: Method, setting: Setting, data: bytes, round: int, client: int, rows: int, start: Pools, keep: Pools
) -> Told:
    """What a client begins with. Raises: Refused."""
    return Told(round, client, rows, heard(method, setting, data, round, client), start, keep)


def begun(method: Method, setting: Setting, told: Told) -> Client:
    """The client's work, to be driven by an engine: see `asks.drive`."""
    return method.client(setting, told)


def up(method: Method, setting: Setting, told: Told, sent: Sent) -> bytes:
    """A client's answer; where it has no finite numbers, facts alone."""
    about = of_client(facts(setting, told.round), told.client, told.rows)
    if not sent.tensors:
        return without(about)
    return pack(about, sent.tensors, method.up(setting, told.round, told.client))


class Inbox(NamedTuple):
    """What has come of a round so far. replies: those that count, by client. refused: the others, by reason.
    errors: the last ones in words."""

    replies: Answers
    refused: Counter[str]
    errors: dict[int, str]


@dataclass
class Gathering:
    """A round that waits for answers. chosen: who was asked. rows: how many a client may say that it has; None: as it
    says."""

    method: Method
    setting: Setting
    round: int
    chosen: Collection[int]
    rows: Mapping[int, int] | None = None
    inbox: Inbox = field(default_factory=lambda: Inbox(Answers(), Counter(), {}))

    def put(self, data: bytes, sender: int | None = None) -> bool:
        """Whether an answer counts. sender: who it came from, where the carrier knows. What is wrong is counted by name
        and the round goes on; the first good answer of a client stays."""
        try:
            client, rows, table = self._look(data, sender)
        except Refused as e:
            self.refuse(e.reason, self._said(data) if sender is None else sender, str(e))
            return False
        self.inbox.replies.put(client, rows, data, table)
        return True

    def _look(self, data: bytes, sender: int | None) -> tuple[int, int, Table]:
        client = sender
        if client is None:
            client = self._client(data)
        table = self.method.up(self.setting, self.round, client if client in self.chosen else min(self.chosen))
        found, tensors = unpack(data, table, facts(self.setting, self.round))
        if found.client not in self.chosen or (sender is not None and found.client != sender):
            raise Refused("unknown client", f"{found.client} was not asked in round {self.round}")
        if found.client in self.inbox.replies:
            raise Refused("answered twice", f"client {found.client}")
        rows = found.rows if self.rows is None else self.rows[found.client]
        if rows < 1 or found.rows != rows:
            raise Refused("wrong shape", f"client {found.client} says {found.rows} rows; it has {rows}")
        if self.method.check is not None:
            self.method.check(self.setting, self.round, found.client, tensors)
        return found.client, rows, table

    def _client(self, data: bytes) -> int:
        """Who a message says it is from, its length looked at first."""
        most = max(bound(self.method.up(self.setting, self.round, c)) for c in self.chosen)
        if len(data) > most:
            raise Refused("too long", f"{len(data):,} bytes; at most {most:,} are read")
        return read_facts(data).client

    def _said(self, data: bytes) -> int:
        """Who a message says it is from, as far as it can be read: who is refused has not vanished as well."""
        try:
            return self._client(data)
        except Refused:
            return SERVER

    def refuse(self, reason: str, client: int, why: str) -> None:
        self.inbox.refused[reason] += 1
        self.inbox.errors[client] = why

    def lost(self, clients: Iterable[int], reason: str) -> None:
        """Clients of whom nothing came, or too late."""
        for c in clients:
            if c not in self.inbox.replies and c not in self.inbox.errors:
                self.inbox.refused[reason] += 1

    def close(self, state: State, minimum: int = 1) -> State:
        """The next state; the same where fewer than `minimum` answers count. Replies are taken in the order of their
        clients, whenever they came. With privacy the mean is `privacy.gather`'s.

        Finite numbers can be so large that what is made of them is not (1e38 is a float32, ten times it is none): then
        those whose answer alone does this are refused, or all, and the state is made of the others."""
        replies = self.inbox.replies
        while len(replies) >= max(1, minimum):
            new = self._gathered(state, InOrder(replies))
            if self._usable(new):
                return new
            bad = [c for c in replies if not self._usable(self._gathered(state, [replies[c]]))]
            for c in bad or list(replies):
                replies.drop(c)
                self.refuse("not finite", c, "what the server makes of its numbers is NaN or infinite")
        state = state._replace(seen={})
        return state if self.method.idle is None else self.method.idle(self.setting, state, self.round)

    def _usable(self, state: State) -> bool:
        """Whether all numbers of a state are finite, and the pools that clients rebuild of it."""
        if not finite(state.tensors):
            return False
        return state.tensors.keys() >= {*self.setting.travels} or finite(self.method.pools(self.setting, state))

    def _gathered(self, state: State, replies: Sequence[Reply]) -> State:
        privacy, through = self.setting.privacy, self.method.through
        if privacy is None:
            return self.method.gather(self.setting, state, self.round, replies)

        def gather(_: Setting, state: State, round: int, replies: Sequence[Reply]) -> State:
            return private(privacy, state, replies, len(self.chosen))

        return (gather if through is None else through(gather))(self.setting, state, self.round, replies)


def finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(bool(v.isfinite().all()) for v in tensors.values() if v.is_floating_point())


def starting(setting: Setting, pools: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The first values of what is trained, on the CPU."""
    return {n: pools[n].detach().cpu().clone() for n in (*setting.travels, *setting.private)}
