"""A run's state on disk: pools, AdamW's moments, the schedule's place, random states. safetensors and JSON, no pickle.

Folder ``<out>.checkpoint/`` holds ``step-<n>/state.safetensors``. The JSON lies in the file's header, so that one
rename makes a checkpoint appear whole; what a crash leaves behind is never read.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor
from transformers import TrainerState

from ..core import CommonweightError
from ..formats import atomic

STATE = "trainer_state.json"  # transformers.Trainer reads the number of steps done from here


@dataclass
class Checkpoint:
    """tensors: pools, moments and random states by name. facts: JSON-ready: settings, schedule, scores, curve."""

    tensors: dict[str, Tensor]
    facts: dict[str, Any]


class Store:
    """The checkpoints of one run in one folder: at most two at a time, the newest whole one counts."""

    def __init__(self, folder: Path):
        self.folder = folder

    def _steps(self) -> list[int]:
        names = [p.name for p in self.folder.glob("step-*")] if self.folder.is_dir() else []
        return sorted(int(n[5:]) for n in names if n[5:].isdecimal())

    def newest(self) -> Path | None:
        """The folder of the newest checkpoint, ready for transformers.Trainer; None when there is none."""
        steps = self._steps()
        return self.folder / f"step-{steps[-1]}" if steps else None

    def write(self, step: int, state: TrainerState, checkpoint: Checkpoint) -> None:
        """Whole or not at all: written under another name, synced, renamed; then the older ones go."""
        temporary, final = self.folder / f"new-{step}", self.folder / f"step-{step}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            data = save(checkpoint.tensors, {"facts": json.dumps(checkpoint.facts)})
            atomic.write(temporary / "state.safetensors", data)
            state.save_to_json(str(temporary / STATE))
            with open(temporary / STATE) as f:
                os.fsync(f.fileno())
            if final.exists():
                self._drop(final)
            os.replace(temporary, final)
            atomic.sync(self.folder)
        except OSError as e:
            raise CommonweightError(f"{self.folder}: the checkpoint cannot be written: {e.strerror}") from e
        for old in self._steps():
            if old != step:
                self._drop(self.folder / f"step-{old}")

    def _drop(self, path: Path) -> None:
        """Renamed first: a folder that is half gone does not look like a checkpoint."""
        gone = self.folder / f"old-{path.name}"
        shutil.rmtree(gone, ignore_errors=True)
        os.replace(path, gone)
        shutil.rmtree(gone, ignore_errors=True)

    def clear(self) -> None:
        """Removes the checkpoints, each first under another name, so that a crash leaves none half-empty; and the
        folder, unless somebody keeps other things in it."""
        if self.folder.is_dir():
            for step in self._steps():
                self._drop(self.folder / f"step-{step}")
            for left in (*self.folder.glob("new-*"), *self.folder.glob("old-step-*")):
                shutil.rmtree(left, ignore_errors=True)
            if not any(self.folder.iterdir()):
                self.folder.rmdir()


def read(folder: Path) -> Checkpoint:
    path = folder / "state.safetensors"
    try:
        with safe_open(path, "pt") as f:
            facts = json.loads((f.metadata() or {})["facts"])
            return Checkpoint({k: f.get_tensor(k) for k in f.keys()}, facts)
    except (SafetensorError, OSError, ValueError, KeyError) as e:
        raise CommonweightError(f"{path}: the checkpoint is damaged ({e}); delete {folder.parent}") from e


def same_settings(ours: dict[str, Any], theirs: dict[str, Any], folder: Path | str) -> None:
    """Raises: CommonweightError that names every setting in which the checkpoint's run differs from this one."""
    ours = json.loads(json.dumps(ours))
    if told := "; ".join(_differing(theirs, ours)):
        raise CommonweightError(
            f"{folder}: this run was started with other settings ({told}); repeat them to resume, "
            "or delete the folder to start again"
        )


def _differing(then: dict[str, Any], now: dict[str, Any], of: str = "") -> Iterator[str]:
    """In words, what two runs differ in; of options those that differ. What is not there was not given."""
    for k in sorted({*then, *now}):
        a, b = then.get(k), now.get(k)
        if isinstance(a, dict) and isinstance(b, dict):
            yield from _differing(a, b, f"{of}{k}.")
        elif a != b:
            was, new = (_short(x[k]) if k in x else "not given" for x in (then, now))
            yield f"{of}{k}: then {was}, now {new}"


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def random_states() -> dict[str, Tensor]:
    """What dropout draws from, on the CPU and on the CUDA device in use."""
    out = {"random/cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        out["random/cuda"] = torch.cuda.get_rng_state()
    return out


def set_random_states(tensors: dict[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random/cpu"])
    if "random/cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random/cuda"])
