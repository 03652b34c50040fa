"""A run on disk: the server's state of the last whole round, and what each client keeps. Whole or not at all."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from ..core import CommonweightError
from ..formats import atomic
from .registry import State
from .sealed import WRONG, sealed, unsealed


class Kept:
    """In memory, or in a folder: ``server.safetensors`` (replaced in one step, once a round) and
    ``clients/<client>.<round>.safetensors``.

    What a client keeps is written before the round counts. A run that is killed in between finds it again under the
    number of the round that did not count, and does not read it: `last` says which round of a client counts.
    """

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.memory: dict[int, dict[str, Tensor]] = {}
        self.last: dict[int, int] = {}  # client -> the round of what it keeps
        self.new: dict[int, int] = {}  # of the round that does not count yet

    def keep(self, client: int, round: int, tensors: Mapping[str, Tensor]) -> None:
        if not tensors:
            return
        if self.folder is None:
            self.memory[client] = dict(tensors)
        else:
            atomic.write(self._client(client, round), sealed(tensors))
        self.new[client] = round

    def of(self, client: int) -> dict[str, Tensor]:
        """What a client kept; {} before its first round. Raises: CommonweightError where its file is damaged."""
        if self.folder is None:
            return self.memory.get(client, {})
        if client not in self.last:
            return {}
        path = self._client(client, self.last[client])
        try:
            return unsealed(path)[0]
        except WRONG as e:
            raise CommonweightError(
                f"{path}: what client {client} kept is damaged ({e}); without it the run cannot go on: begin it anew"
            ) from e

    def commit(self, state: State, facts: Mapping[str, Any]) -> None:
        """The round counts from here on."""
        old = {c: self.last[c] for c in self.new if c in self.last}
        self.last |= self.new
        self.new = {}
        if self.folder is None:
            return
        about = {**facts, "state": state.facts, "seen": state.seen, "kept": self.last}
        atomic.write(self.folder / "server.safetensors", sealed(state.tensors, {"facts": json.dumps(about)}))
        for client, round in old.items():
            self._client(client, round).unlink(missing_ok=True)

    def read(self) -> tuple[State, dict[str, Any]] | None:
        """(state, facts) of the last whole round; None where there is none."""
        path = None if self.folder is None else self.folder / "server.safetensors"
        if path is None or not path.is_file():
            return None
        try:
            tensors, said = unsealed(path)
            facts = json.loads(said["facts"])
            self.last = {int(c): r for c, r in facts.pop("kept").items()}
            return State(tensors, facts.pop("state"), facts.pop("seen")), facts
        except WRONG as e:
            raise CommonweightError(f"{path}: the state of this run is damaged ({e}); delete {path.parent}") from e

    def _client(self, client: int, round: int) -> Path:
        assert self.folder is not None
        return self.folder / "clients" / f"{client}.{round}.safetensors"
