"""The list of exchange methods: name -> what it is. A method is a config and pure functions over pools."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from torch import Tensor

from ..core import Plan, Pool, Registry, Site, with_rest
from .asks import Client, Pools, Told
from .message import Table


class State(NamedTuple):
    """What the server keeps between rounds; a checkpoint is exactly this. facts: JSON-ready. seen: numbers of the last
    round for the curve."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any] = {}  # noqa: RUF012
    seen: dict[str, float] = {}  # noqa: RUF012


class Reply(NamedTuple):
    """A client's answer that was not refused."""

    client: int
    rows: int
    tensors: Pools


@dataclass(frozen=True)
class Privacy:
    """noise: z, the noise of a number over `clip`; 0: changes are clipped and no privacy is claimed. clip: C, the most
    that a client's change may be, its norm over all pools that travel. delta: of (epsilon, delta)."""

    noise: float
    clip: float
    delta: float = 1e-5


@dataclass(frozen=True)
class Coding:
    """Codecs of what goes up and comes down; None: as it is. feedback: "none", "clients" or "both", who makes up for
    what a codec lost. See `coding`."""

    up: str | None = None
    down: str | None = None
    feedback: str = "clients"


@dataclass(frozen=True)
class Setting:
    """What both sides of a run know. plan: of the tenant that is trained. travels, private: its trainable pools that
    go to the server and back, and those that stay with a client. weigh: "rows" or "clients", how replies are weighed.
    privacy: how a private mean is made, in place of the method's own; None: it is not. coding: how messages are coded.
    """

    method: str
    config: Any
    plan: Plan
    travels: tuple[str, ...]
    private: tuple[str, ...] = ()
    run: str = "run"
    base: str = ""
    seed: int = 0
    rounds: int = 1
    clients: int = 1
    weigh: str = "rows"
    privacy: Privacy | None = None
    coding: Coding | None = None

    @property
    def pools(self) -> dict[str, Pool]:
        """The pools that travel, in order."""
        return {n: self.plan.pools[n] for n in self.travels}

    @property
    def count(self) -> int:
        """Trainable numbers that travel: p in the formulas."""
        return sum(p.numel for p in self.pools.values())


Gather = Callable[[Setting, State, int, Sequence[Reply]], State]


@dataclass(frozen=True)
class Method:
    """One way to exchange.

    paper: title and address; id: in the list of surveyed methods. adapter: config -> (a method of
    `commonweight.methods`, its options), whose trainable pools are exchanged. begin: (setting, first pools) -> the
    server's state. down, up: (setting, round, client) -> the table of a message. tell: (setting, state, round, client)
    -> what is sent to a client. client: (setting, told) -> a generator of asks that ends with `Sent`. gather: (setting,
    state, round, replies) -> the next state; it gets replies in the order of their clients. pools: (setting, state) ->
    the global tenant's pools.
    check: (setting, round, client, tensors of an answer), where shapes and finite numbers do not say all: raises
    `Refused`, and the answer does not count.
    nbytes: (setting, round, client) -> (bytes up, bytes down), at most, without the frames of the messages; formula:
    the same in words, p: numbers that travel. keeps, each: what the server keeps, and a client.
    broadcast: whether all clients of a round are told the same. apart: why clients cannot be trained in one mixed
    batch. noise: why noise for privacy, which is added to averages of pools, cannot be; empty: it can.
    exact: whether the server's mean is the mean of what the clients' models do, and not of its factors.
    by_sites: (config, sites) -> more options of the adapter, where they depend on the model.
    sends: what the floats of an answer are: "values" in the place of those of the same name that came down, or
    "changes". uncoded: (config, "up" or "down") -> why no codec can carry what goes that way; empty: one can. places:
    (setting, round, client) -> of a part whose numbers are others each round: (which ones, of how many). coding: config
    -> codecs of the method's own. seconds: (setting, client) -> how long a round takes it, where the method is told.
    through: what stands between answers and whatever gathers them; idle: (setting, state, round) -> the state after a
    round of which no answer counts. No method has these two: they are of what is put around it, see `coding`.
    """

    name: str
    config: type
    paper: str
    adapter: Callable[[Any], tuple[str, dict[str, Any]]]
    begin: Callable[[Setting, Pools], State]
    down: Callable[[Setting, int, int], Table]
    tell: Callable[[Setting, State, int, int], Pools]
    up: Callable[[Setting, int, int], Table]
    client: Callable[[Setting, Told], Client]
    gather: Callable[[Setting, State, int, Sequence[Reply]], State]
    pools: Callable[[Setting, State], Pools]
    nbytes: Callable[[Setting, int, int], tuple[int, int]]
    formula: str
    keeps: str
    each: str = "nothing"
    id: int | None = None
    broadcast: bool = True
    apart: str = ""
    noise: str = ""
    exact: bool = False
    by_sites: Callable[[Any, Sequence[Site]], dict[str, Any]] | None = None
    check: Callable[[Setting, int, int, Pools], None] | None = None
    sends: Literal["values", "changes"] = "values"
    uncoded: Callable[[Any, str], str] = lambda *_: ""
    places: Callable[[Setting, int, int], Mapping[str, tuple[Tensor, int]]] | None = None
    coding: Callable[[Any], Coding] | None = None
    seconds: Callable[[Setting, int], float | None] = lambda *_: None
    through: Callable[[Gather], Gather] | None = None
    idle: Callable[[Setting, State, int], State] | None = None

    @property
    def trains(self) -> str:
        """Which parameters: the trainable pools of an adapter and the head, never the base."""
        name, _ = self.adapter(self.config())
        free = "adapter" in self.config.__dataclass_fields__  # type: ignore[attr-defined]
        return f"those of any adapter ({name})" if free else f"those of {name}"


METHODS = Registry[Method]("exchange method")
available, get = METHODS.available, METHODS.get
Adapter = Callable[[Any], tuple[str, dict[str, Any]]]


def method(name: str, config: type, **about: Any) -> Callable[[Adapter], Adapter]:
    """Registers a method under `name` by the function that names its adapter; about: the other fields of `Method`. A
    name or a config used twice raises."""

    def register(adapter: Adapter) -> Adapter:
        METHODS.add(Method(name=name, config=config, adapter=adapter, **about))
        return adapter

    return register


def resolve(name: str, options: Mapping[str, Any]) -> tuple[Method, Any]:
    """(method, config). Of a method whose adapter can be chosen, options that are not its own are the adapter's."""
    return METHODS.resolve(name, with_rest(get(name).config, options))
