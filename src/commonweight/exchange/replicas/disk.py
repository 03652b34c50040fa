"""A process's last two rounds on disk: it may be one round ahead of another when all are killed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...core import CommonweightError
from ...formats import atomic
from ..registry import State
from ..sealed import WRONG, sealed, unsealed

KEEP = "keep/"


def written(state: State, curve: list[dict[str, Any]]) -> dict[str, Tensor]:
    """What a process knows, as tensors alone, since nothing is unpickled."""
    text = json.dumps([state.facts, state.seen, curve]).encode()
    return {**state.tensors, "*": torch.frombuffer(bytearray(text), dtype=torch.uint8)}


def readable(known: Mapping[str, Tensor]) -> tuple[State, list[dict[str, Any]]]:
    facts, seen, curve = json.loads(known["*"].numpy().tobytes())
    return State({k: v.clone() for k, v in known.items() if k != "*"}, facts, seen), curve


@dataclass(frozen=True)
class Disk:
    """``<client>.<rounds>.safetensors`` in a folder: the server's state after so many rounds, and what the client
    keeps. run: the settings, in words; a run goes on with the same ones."""

    folder: Path
    client: int
    run: str

    def rounds(self) -> int:
        """How many the newest file has; 0 without one."""
        return max(self._have(), default=0)

    def write(self, state: State, curve: list[dict[str, Any]], keep: Mapping[str, Tensor]) -> None:
        atomic.make_folder(self.folder)
        tensors = {
            **written(state, curve),
            **{KEEP + k: v.clone() for k, v in keep.items()},
        }  # one tensor may be in both
        atomic.write(self._path(len(curve)), sealed(tensors, {"run": self.run}))
        for rounds in self._have():
            if not len(curve) - 1 <= rounds <= len(curve):
                self._path(rounds).unlink(missing_ok=True)

    def read(self, rounds: int) -> tuple[State, list[dict[str, Any]], dict[str, Tensor]]:
        """Raises: CommonweightError where there is no such file, or one of another run."""
        path = self._path(rounds)
        try:
            known, said = unsealed(path)
            run = said.get("run")
            keep = {k.removeprefix(KEEP): known.pop(k) for k in list(known) if k.startswith(KEEP)}
            state, curve = readable(known)
        except WRONG as e:
            raise CommonweightError(
                f"{path}: all go on after {rounds} rounds, which client {self.client} cannot read ({e}); begin anew "
                "without --resume, in an empty --state"
            ) from e
        if run != self.run:
            raise CommonweightError(f"{path}: of a run with other settings; {run}, and this one has {self.run}")
        return state, curve, keep

    def _have(self) -> list[int]:
        return [int(p.name.split(".")[1]) for p in self.folder.glob(f"{self.client}.*.safetensors")]

    def _path(self, rounds: int) -> Path:
        return self.folder / f"{self.client}.{rounds}.safetensors"
