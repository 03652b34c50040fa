"""Flower's strategy that carries a run's bytes: it chooses clients as `simulate` does, and averages nothing itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy

from ...core import CommonweightError
from ..message import Refused
from ..registry import State
from ..rounds import Gathering, down, facts
from ..run import Seat
from ..setting import Prepared
from ..splits import sampled
from .records import array, data_of, packed, packed_again, plain

PAUSE = 0.2  # seconds between two looks for nodes


class Seen(dict[int, tuple[int, int]]):
    """node -> (its client, that one's rows)."""


@dataclass
class Exchange(Strategy):
    """p: the run. state: the server's. curve, seats: of the rounds that are done. wait: seconds until enough clients
    must have come. floats: messages are arrays under the pools' names, for Flower's mods. done: called after every
    round with the new state. measure: of a state, for the curve."""

    p: Prepared
    state: State
    curve: list[dict[str, Any]] = field(default_factory=list)
    seats: dict[int, Seat] = field(default_factory=dict)
    wait: float = 60.0
    done: Callable[[State], None] = lambda _: None
    floats: bool = False
    measure: Callable[[State, int], Mapping[str, float]] = lambda _, __: {}

    def __post_init__(self) -> None:
        self.nodes = Seen()
        self.refused: dict[int, str] = {}  # node -> why it is not asked
        self.chosen: list[int] = []
        self.sizes: dict[int, int] = {}
        self.inbox: Gathering | None = None
        self.begun = False  # whether this server has had a round; one that goes on waits for all clients, as at first
        self.grid: Grid | None = None

    # -- who is there ----------------------------------------------------------------------------------------------

    def meet(self, grid: Grid) -> None:
        """Asks nodes that are new who they are, until all clients are there; from the second round on, or when `wait`
        is over, until `minimum` are. Raises: CommonweightError."""
        end = time.monotonic() + self.wait
        while True:
            there = set(grid.get_node_ids())
            for gone in self.nodes.keys() - there:
                del self.nodes[gone]
            new = sorted(there - self.nodes.keys() - self.refused.keys())
            if new:
                asked = [Message(RecordDict(), dst_node_id=n, message_type=MessageType.QUERY) for n in new]
                for reply in grid.send_and_receive(asked, timeout=self.wait):
                    self._hear(reply)
            n, over = len(self.nodes), time.monotonic() >= end
            if n >= self.p.setting.clients or (n >= self.p.plan.minimum and (self.begun or over)):
                return
            if over:
                why = "".join(f"\n  node {k}: {text}" for k, text in self.refused.items())
                raise CommonweightError(
                    f"{n} clients came in {self.wait:g} s, and a round needs {self.p.plan.minimum}; start more nodes, "
                    f"or a longer wait{why}"
                )
            time.sleep(PAUSE)

    def _hear(self, reply: Message) -> None:
        node, s = reply.metadata.src_node_id, self.p.setting
        if reply.has_error():
            self.refused[node] = reply.error.reason or f"error {reply.error.code}"
            return
        said = dict(reply.content.config_records.get("facts", {}))
        wanted = {"base": s.base, "run": s.run, "plan": s.plan.digest()}
        other = [k for k, v in wanted.items() if said.get(k) != v]
        client, rows = said.get("client"), said.get("rows")
        if other:
            self.refused[node] = f"other {other[0]}: {said.get(other[0])!r}; this run has {wanted[other[0]]!r}"
        elif type(client) is not int or type(rows) is not int or not 0 <= client < s.clients or rows < 1:
            self.refused[node] = f"says it is client {client!r} with {rows!r} rows; wanted one of {s.clients}"
        elif client in {c for c, _ in self.nodes.values()}:
            self.refused[node] = f"says it is client {client}, which is another node"
        else:
            self.nodes[node] = (client, rows)

    # -- a round ---------------------------------------------------------------------------------------------------

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """What each client of the round is told. server_round and arrays are Flower's count and copy; the run's own
        are used, which go on after a restart."""
        self.grid = grid
        self.refused = {}  # a node keeps its number when it is started anew with what it lacked
        self.meet(grid)
        self.begun = True
        p, round = self.p, len(self.curve)
        rows = dict(self.nodes.values())
        self.chosen = sampled(p.setting.clients, p.plan.sample, round, p.setting.seed)
        self.inbox = Gathering(p.method, p.setting, round, set(self.chosen), rows)
        place = {c: n for n, (c, _) in self.nodes.items()}
        one = down(p.method, p.setting, self.state, round) if p.method.broadcast else None
        self.sizes, out = {}, []
        for c in self.chosen:
            if c not in place:
                continue
            data = one or down(p.method, p.setting, self.state, round, c)
            self.sizes[c] = len(data)
            if self.floats:
                content = plain(data, p.method.down(p.setting, round, c), facts(p.setting, round))
            else:
                content = packed(data, round=round)
            out.append(Message(
                content, dst_node_id=place[c], message_type=MessageType.TRAIN, group_id=str(round)
            ))  # fmt: skip
        return out

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Counts or refuses each reply by name; the method's own `gather` makes the next state."""
        assert self.inbox is not None and self.grid is not None
        inbox, p = self.inbox, self.p
        up = {c: 0 for c in self.chosen}
        for reply in replies:
            client = self.nodes.get(reply.metadata.src_node_id, (None, 0))[0]
            if client not in up:
                if not reply.has_error():  # an error in the server's own name: of a node that is gone, counted below
                    inbox.inbox.refused["unknown client"] += 1
            elif reply.has_error():
                inbox.inbox.refused["vanished"] += 1
                inbox.inbox.errors[client] = reply.error.reason or f"error {reply.error.code}"
            else:
                try:
                    data = self._read(reply.content, client)
                except Refused as e:
                    inbox.inbox.refused[e.reason] += 1
                    inbox.inbox.errors[client] = str(e)
                    continue
                up[client] += len(data)
                inbox.put(data, client)
        there = set(self.grid.get_node_ids())
        alive = {c for n, (c, _) in self.nodes.items() if n in there}
        inbox.lost((c for c in self.chosen if c in alive), "late")
        inbox.lost((c for c in self.chosen if c not in alive), "vanished")
        self.state = inbox.close(self.state, p.plan.minimum)
        for c in self.chosen:
            was = self.seats.get(c, Seat(rows=(inbox.rows or {}).get(c, 0)))
            self.seats[c] = was._replace(
                rounds=was.rounds + (c in inbox.inbox.replies), up=was.up + up[c], down=was.down + self.sizes.get(c, 0)
            )
        self.curve.append({
            "round": inbox.round, "clients": len(self.chosen), "replies": len(inbox.inbox.replies),
            "refused": dict(sorted(inbox.inbox.refused.items())), "train_loss": None, "up": sum(up.values()),
            "down": sum(self.sizes.values()), **self.measure(self.state, inbox.round), **self.state.seen,
        })  # fmt: skip
        self.done(self.state)
        last = {k: v for k, v in self.curve[-1].items() if isinstance(v, int | float)}
        return array(b""), MetricRecord(last)

    def _read(self, content: Any, client: int) -> bytes:
        """Raises: Refused."""
        if not self.floats:
            return data_of(content)
        return packed_again(content, self.p.method.up(self.p.setting, len(self.curve), client))

    # -- what this run does not use --------------------------------------------------------------------------------

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Nothing: the server measures, on rows of its own."""
        return []

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        from flwr.supercore import log

        s = self.p.setting
        log(20, "commonweight %s: %d numbers travel, %d clients", s.method, s.count, s.clients)
