"""The rounds of one process among several."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ...adapt.tasks import Example
from ..asks import Told, drive
from ..measured import load
from ..message import bound
from ..rounds import Gathering, begun, starting, up
from ..setting import Prepared
from ..work import Work
from .carrier import Carrier, Wait
from .disk import Disk, readable, written


class Coming(Mapping[str, Tensor]):
    """What a client is told, of which the names are known before the numbers are there. The first look at one waits
    for it: until then a client goes on training (DiLoCo's tau)."""

    def __init__(self, names: list[str], fetch: Callable[[], Mapping[str, Tensor]]):
        self.names, self.fetch = names, fetch
        self.found: Mapping[str, Tensor] | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self.found is None:
            self.found = self.fetch()
        return self.found[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


@dataclass
class Replica:
    """A process of a run. state: the server's, the same in all. keep: what this client has of its own. curve: of every
    round its messages, refusals, loss of this client, bytes up and down of this process."""

    p: Prepared
    carrier: Carrier
    rows: list[Example]
    say: Callable[[dict[str, Any]], None] = lambda _: None
    disk: Disk | None = None
    keep: dict[str, Tensor] = field(default_factory=dict)
    curve: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        p = self.p
        self.start = starting(p.setting, p.tenant.pools)
        self.state = p.method.begin(p.setting, self.start)
        self.work = Work(
            p.host, p.tenant, p.task, {self.carrier.client: self.rows}, p.local, p.setting.rounds, p.setting.seed, 1
        )
        self.waiting: tuple[int, Wait, int, float | None] | None = None
        self.again = 0

    def resume(self) -> None:
        """Goes on from the last round that every process has on disk. Raises: CommonweightError."""
        assert self.disk is not None
        rounds = self.carrier.agree(self.disk.rounds())
        if rounds:
            self.state, self.curve, self.keep = self.disk.read(rounds)

    def run(self) -> Replica:
        while len(self.curve) + (self.waiting is not None) < self.p.setting.rounds:
            self.round()
        self.settle()
        load(self.p, self.state)
        return self

    def round(self) -> None:
        p, c = self.p, self.carrier.client
        self.enter()
        round = len(self.curve) + (self.waiting is not None)
        names = list(p.method.down(p.setting, round, c))
        told = Told(round, c, len(self.rows), Coming(names, lambda: self.told(round)), self.start, self.keep)
        sent = drive(begun(p.method, p.setting, told), lambda ask: self.work.answer(round, [(c, ask)])[0])
        self.settle()
        data = up(p.method, p.setting, told, sent)
        if sent.tensors:
            self.keep = dict(sent.keep)
        most = max(bound(p.method.up(p.setting, round, i)) for i in range(self.carrier.clients))
        self.waiting = (round, self.carrier.send(data, most), len(data), sent.loss)
        if not self.carrier.patient:
            while not self.settle():
                self.again += 1
                self.enter()
                if len(self.curve) != round:  # another process knew of a later round
                    self.waiting = None
                    return
                self.waiting = (round, self.carrier.send(data, most), len(data), sent.loss)

    def told(self, round: int) -> Mapping[str, Tensor]:
        self.settle()
        return self.p.method.tell(self.p.setting, self.state, round, self.carrier.client)

    def enter(self) -> None:
        """A process that is new, or was away, goes on from what the others know."""
        known = self.carrier.begin(len(self.curve), written(self.state, self.curve))
        if known is not None:
            self.state, self.curve = readable(known)
            last = self.p.method.pools(self.p.setting, self.state)
            self.keep = {**last, **{f"anchor/{n}": v for n, v in last.items()}}

    def settle(self) -> bool:
        """The server's step on the messages that are on their way; False where the round does not count."""
        if self.waiting is None:
            return True
        p, (round, wait, size, loss) = self.p, self.waiting
        self.waiting = None
        each = wait()
        if not self.carrier.ended():
            return False
        inbox = Gathering(p.method, p.setting, round, set(range(p.setting.clients)))
        for data in each:
            inbox.put(data)
        inbox.lost(range(p.setting.clients), "vanished")
        self.state = inbox.close(self.state, p.plan.minimum)
        refused: Counter[str] = inbox.inbox.refused
        self.curve.append({
            "round": round, "clients": p.setting.clients, "replies": len(inbox.inbox.replies),
            "refused": dict(sorted(refused.items())), "loss": loss, "up": size, "down": sum(map(len, each)) - size,
            **self.state.seen,
        })  # fmt: skip
        if self.disk is not None:  # what is kept is still of this round, though the next may have begun
            self.disk.write(self.state, self.curve, self.keep)
        self.say(self.curve[-1])
        return True


def exchange(
    p: Prepared, rows: list[Example], carrier: Carrier, say: Callable[[dict[str, Any]], None] = lambda _: None,
    disk: Disk | None = None, resume: bool = False,
) -> Replica:  # fmt: skip
    """A whole run of this process. rows: its own. disk: where it keeps its last rounds; resume: goes on from there, to
    the same bits. Raises: CommonweightError."""
    try:
        replica = Replica(p, carrier, rows, say, disk)
        if resume and disk is not None:
            replica.resume()
        done = replica.run()
        carrier.part()
        return done
    finally:
        carrier.close()
        p.host.model.eval()
