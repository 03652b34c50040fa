"""A node of Flower: opens its base and its rows once, and answers one round at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, RecordDict

from ...adapt.tasks import Example
from ...core import CommonweightError
from ..asks import drive
from ..checkpoint import Kept
from ..rounds import begun, facts, starting, told, up
from ..setting import Prepared, by_client
from ..splits import split
from ..work import Work
from .config import opened, rows_of
from .records import data_of, fact, packed, packed_again, plain, remember, remembered


@dataclass
class Node:
    """A base with the global tenant, for one client or, in Flower's simulation, for several in turn."""

    p: Prepared
    config: dict[str, Any]
    rows: dict[int, list[Example]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.start = starting(self.p.setting, self.p.tenant.pools)
        p = self.p
        self.work = Work(p.host, p.tenant, p.task, self.rows, p.local, p.setting.rounds, p.setting.seed, 1)

    def examples(self, client: int, own: str | None) -> list[Example]:
        """own: a file with this client's rows alone; else its part of the app's rows."""
        if client not in self.rows:
            path = own or self.config.get("rows")
            if not path:
                raise CommonweightError(
                    f"client {client} has no rows; start its node with --node-config 'rows=\"FILE\" client={client}'"
                )
            rows = rows_of(self.config, path)
            places = [list(range(len(rows)))]
            if own is None:
                plan = self.p.plan
                places = split(
                    rows, plan.clients, plan.split, seed=plan.seed,
                    label_column=self.config.get("label-column") or None,
                )[client : client + 1]  # fmt: skip
            self.rows[client] = by_client(self.p.task, rows, places)[0]
        return self.rows[client]


def node_of(context: Context) -> tuple[Node, int, list[Example]]:
    """(the node, which client it is, its examples). Raises: CommonweightError."""
    own = context.node_config
    client = own.get("client", own.get("partition-id"))
    if not isinstance(client, int):
        raise CommonweightError("this node does not say which client it is; start it with --node-config 'client=0'")
    node = _node(json.dumps(dict(context.run_config), sort_keys=True))
    if not 0 <= client < node.p.setting.clients:
        raise CommonweightError(f"client={client}; the app has clients 0 to {node.p.setting.clients - 1}")
    path = own.get("rows")
    return node, client, node.examples(client, str(path) if path else None)


@lru_cache(maxsize=1)
def _node(config: str) -> Node:
    return Node(*opened(json.loads(config)))


def hello(message: Message, context: Context) -> Message:
    """Who this node is, before it is asked for anything: its number, its rows, its base and the run."""
    node, client, rows = node_of(context)
    about: Mapping[str, Any] = {
        "client": client, "rows": len(rows), "base": node.p.setting.base, "run": node.p.setting.run,
        "plan": node.p.setting.plan.digest(),
    }  # fmt: skip
    return Message(RecordDict({"facts": ConfigRecord(dict(about))}), reply_to=message)


def train(message: Message, context: Context) -> Message:
    """One round. What the client keeps is in the context's state, or in the folder ``state=`` of the node's config,
    from which also a server that began again finds it. Raises: Refused for what the server sent."""
    node, client, rows = node_of(context)
    p, round = node.p, int(fact(message.content, "round"))
    memory = context.node_config.get("state")
    folder = Path(str(memory), p.setting.run) if memory else None
    keep = _read(folder, client, round) if folder else remembered(context.state, client, round)
    plainly = node.config.get("floats")
    data = (
        packed_again(message.content, p.method.down(p.setting, round, client)) if plainly else data_of(message.content)
    )
    got = told(p.method, p.setting, data, round, client, len(rows), node.start, keep)
    sent = drive(begun(p.method, p.setting, got), lambda ask: node.work.answer(round, [(client, ask)])[0])
    answer = up(p.method, p.setting, got, sent)
    if folder:
        _write(folder, client, round, sent.keep)
    else:
        remember(context.state, client, round, sent.keep)
    if plainly:
        content = plain(answer, p.method.up(p.setting, round, client), facts(p.setting, round))
    else:
        content = packed(answer, round=round, client=client)
    return Message(content, reply_to=message)


def _rounds(folder: Path, client: int) -> list[int]:
    return sorted(int(p.name.split(".")[1]) for p in (folder / "clients").glob(f"{client}.*.safetensors"))


def _read(folder: Path, client: int, round: int) -> dict[str, Any]:
    kept = Kept(folder)
    before = [r for r in _rounds(folder, client) if r < round]
    if before:
        kept.last[client] = before[-1]
    return kept.of(client)


def _write(folder: Path, client: int, round: int, tensors: Mapping[str, Any]) -> None:
    """The newest one before this round stays: the server may be killed, and ask for this one again."""
    before = [r for r in _rounds(folder, client) if r < round]
    Kept(folder).keep(client, round, tensors)
    for r in _rounds(folder, client):
        if r > round or r < max(before, default=0):
            (folder / "clients" / f"{client}.{r}.safetensors").unlink()
