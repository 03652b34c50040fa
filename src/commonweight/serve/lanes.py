"""Many finished tenants at one layer, in one pair of products for all of them.

A lane holds, for one layer, what every resident tenant is there (`frozen.Frozen`), each in a slot: A (S, R, inp),
B (S, R, out), s, c (S, out), t (S, inp). Slot 0 is the plain base. A step of one token a request takes each token's
slot and does one batched product down and one up, whatever methods and ranks; prompts go run by run. What is taken is
kept while the readers of the steps stay the same.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .edition import Edition
from .frozen import Frozen


class Step:
    """Who reads in a step: slots (T,), a slot a token; runs: (first, end, slot) of tokens one after the other."""

    __slots__ = ("runs", "slots", "used")

    def __init__(self, readers: Sequence[tuple[int, int]], device: torch.device):
        flat = [slot for slot, n in readers for _ in range(n)]
        self.slots, self.used = torch.tensor(flat, device=device), frozenset(flat)
        self.runs: list[tuple[int, int, int]] | None = None
        if len(flat) != len(readers):
            at, self.runs = 0, []
            for slot, n in readers:
                self.runs.append((at, at + n, slot))
                at += n


class _Here(threading.local):
    step: Step | None = None


class Lane:
    """One layer's. Called after its forward, and before it where a tenant scales its input."""

    def __init__(self, lanes: Lanes, at: Any):
        self.lanes, self.module = lanes, at.module
        out, inp = at.weight.shape
        self.sizes = {"A": inp, "B": out, "s": out, "t": inp, "c": out}
        self.held: dict[str, Tensor] = {}
        self.readers: set[int] = set()  # slots that are not the base here
        self.kept: tuple[Step | None, dict[str, Tensor]] = None, {}
        self.handles = [
            self.module.register_forward_pre_hook(self.before, with_kwargs=True),
            self.module.register_forward_hook(self.after, with_kwargs=True),
        ]

    def put(self, slot: int, what: Frozen) -> None:
        """B is kept as (R, out)."""
        self.kept = None, {}
        self.readers.add(slot)
        parts = {k: v for k, v in what._asdict().items() if v is not None}
        if "B" in parts:
            parts["B"] = parts["B"].T
        for name, value in parts.items():
            self._room(name, value)
        for name, stack in self.held.items():
            stack[slot] = 1.0 if name in "st" else 0.0
            if (value := parts.get(name)) is not None:
                stack[slot][: len(value)] = value

    def drop(self, slot: int) -> None:
        if slot in self.readers:
            self.readers.discard(slot)
            for name, stack in self.held.items():
                stack[slot] = 1.0 if name in "st" else 0.0
            self.kept = None, {}

    def grow(self) -> None:
        for name, stack in list(self.held.items()):
            self._room(name, stack[0])
        self.kept = None, {}

    def _room(self, name: str, value: Tensor) -> None:
        """Grows a stack to all slots, and to the widest rank."""
        low = name in "AB"
        old = self.held.get(name)
        rank = max(len(value), 0 if old is None else old.shape[1]) if low else 0
        shape = (self.lanes.size, rank, self.sizes[name]) if low else (self.lanes.size, self.sizes[name])
        if old is not None and tuple(old.shape) == shape:
            return
        new = torch.full(shape, 1.0 if name in "st" else 0.0, device=value.device)
        if old is not None:
            new[tuple(slice(n) for n in old.shape)] = old
        self.held[name] = new

    def chosen(self, step: Step, dtype: torch.dtype) -> dict[str, Tensor]:
        """Of each token what it reads here, (T, ...)."""
        if self.kept[0] is not step:
            found = {k: v.index_select(0, step.slots).to(dtype) for k, v in self.held.items()}
            self.kept = step, found
        return self.kept[1]

    def active(self) -> Step | None:
        step = self.lanes.here.step
        return None if step is None or step.used.isdisjoint(self.readers) else step

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if "t" not in self.held or (step := self.active()) is None:
            return None
        x = args[0]
        if x.shape[-2] != len(step.slots):
            return None
        if step.runs is None:
            return (x * self.chosen(step, x.dtype)["t"], *args[1:]), kwargs
        x = x.clone()
        for first, end, slot in step.runs:
            if slot in self.readers:
                x[..., first:end, :] *= self.held["t"][slot].to(x.dtype)
        return (x, *args[1:]), kwargs

    def after(self, module: nn.Module, args: tuple, kwargs: dict, y: Tensor) -> Tensor | None:
        step = self.active()
        if step is None or not self.held.keys() & {"A", "s", "c"}:
            return None
        x = args[0]
        rows, flat = y.view(-1, y.shape[-1]), x.reshape(-1, x.shape[-1])
        if len(rows) != len(step.slots):
            return None
        if step.runs is None:
            self._each(rows, flat, self.chosen(step, y.dtype))
        else:
            for first, end, slot in step.runs:
                if slot in self.readers:
                    self._run(rows[first:end], flat[first:end], slot)
        return y

    def _each(self, y: Tensor, x: Tensor, mine: dict[str, Tensor]) -> None:
        if "s" in mine:
            y.mul_(mine["s"])
        if "c" in mine:
            y.add_(mine["c"])
        if "A" in mine:
            h = torch.bmm(mine["A"], x.unsqueeze(-1))
            y.unsqueeze(1).baddbmm_(h.mT, mine["B"])

    def _run(self, y: Tensor, x: Tensor, slot: int) -> None:
        held = self.held
        if "s" in held:
            y.mul_(held["s"][slot].to(y.dtype))
        if "c" in held:
            y.add_(held["c"][slot].to(y.dtype))
        if "A" in held:
            y.addmm_(x @ held["A"][slot].to(x.dtype).T, held["B"][slot].to(x.dtype))


class Lanes:
    """The lanes of a model's layers and the slots of what is resident in them. One thread alone uses it.

    most: slots; above it, what was unused for longest gives its own away. It must be more than the readers of a step.
    """

    def __init__(self, modules: Mapping[str, Any], most: int):
        self.modules, self.most, self.size = modules, most, min(16, most)
        self.lanes: dict[str, Lane] = {}
        self.slots: dict[Edition, int] = {}  # the longest unused one first
        self.here = _Here()

    def slot(self, edition: Edition | None) -> int | None:
        """Where it is, put there if it was not; None where it has no common form. The plain base is 0."""
        if edition is None:
            return 0
        if edition.form is None:
            return None
        found = self.slots.pop(edition, None)
        if found is None:
            found = self._free()
            for name, form in edition.form.items():
                if name not in self.lanes:
                    self.lanes[name] = Lane(self, self.modules[name])
                self.lanes[name].put(found, form)
        self.slots[edition] = found
        return found

    def _free(self) -> int:
        used = {0, *self.slots.values()}
        free = next((i for i in range(self.size) if i not in used), None)
        if free is not None:
            return free
        if self.size >= self.most:
            oldest = next(iter(self.slots))
            free = self.slots.pop(oldest)
            for lane in self.lanes.values():
                lane.drop(free)
            return free
        free, self.size = self.size, min(2 * self.size, self.most)
        for lane in self.lanes.values():
            lane.grow()
        return free

    def open(self, step: Step | None) -> None:
        """What the passes of this thread read from now on; other threads' passes are not touched."""
        self.here.step = step

    def close(self) -> None:
        for lane in self.lanes.values():
            for handle in lane.handles:
                handle.remove()
        self.lanes.clear()
        self.slots.clear()
