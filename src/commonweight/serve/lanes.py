"""Many finished tenants at one layer, in one pair of products for all of them.

A lane holds, for one layer, what every resident tenant is there (`frozen.Frozen`), each in a slot: A (S, R, inp),
B (S, R, out), s, c (S, out), t (S, inp). Slot 0 is the plain base. The tokens of requests that go on are read in one
batched product down and one up, whatever methods and ranks; prompts go one by one.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, counted
from .edition import Edition
from .frozen import Frozen


class Step:
    """Who reads in a step. Requests with one token come first, as the scheduler has them; `lead` is about those, spans
    (first, end, slot) are the tokens of the others. used: all slots."""

    __slots__ = ("lead", "length", "spans", "used")

    def __init__(self, readers: Sequence[tuple[int, int]], device: torch.device):
        ones = next((i for i, (_, n) in enumerate(readers) if n != 1), len(readers))
        self.lead = Lead([slot for slot, _ in readers[:ones]], device) if ones else None
        self.spans: list[tuple[int, int, int]] = []
        at = ones
        for slot, n in readers[ones:]:
            self.spans.append((at, at + n, slot))
            at += n
        self.length, self.used = at, frozenset(slot for slot, _ in readers)


class Lead:
    """Tokens of which each is a request: slots (n,) says whose. Where the slots up to the last of them hold few others,
    the tokens are laid beside the stacks (`width` places a slot, `places` (n,) says where), and no factor is moved;
    else each token's factors are taken out."""

    __slots__ = ("count", "places", "slots", "top", "width")

    def __init__(self, slots: Sequence[int], device: torch.device):
        at: Counter[int] = Counter()
        nth = []
        for slot in slots:
            nth.append(at[slot])
            at[slot] += 1
        self.count, self.top, self.width = len(slots), max(slots) + 1, max(at.values())
        self.slots = torch.tensor(slots, device=device)
        beside = self.top * self.width <= 2 * self.count + 4
        places = [slot * self.width + i for slot, i in zip(slots, nth)]
        self.places = torch.tensor(places, device=device) if beside else None


class _Here(threading.local):
    step: Step | None = None


class Lane:
    """One layer's. Called after its forward, and before it where a tenant scales its input."""

    def __init__(self, lanes: Lanes, at: Any):
        self.lanes, self.name, self.module = lanes, at.name, at.module
        out, inp = at.weight.shape
        self.sizes = {"A": inp, "B": out, "s": out, "t": inp, "c": out}
        self.held: dict[str, Tensor] = {}
        self.readers: set[int] = set()  # slots that are not the base here
        self.kept: tuple[Lead | None, dict[str, Tensor]] = None, {}
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
        dtype = torch.float32 if old is None else old.dtype
        new = torch.full(shape, 1.0 if name in "st" else 0.0, device=value.device, dtype=dtype)
        if old is not None:
            new[tuple(slice(n) for n in old.shape)] = old
        self.held[name] = new

    def active(self) -> Step | None:
        step = self.lanes.here.step
        return None if step is None or step.used.isdisjoint(self.readers) else step

    def whose(self, step: Step, x: Tensor) -> Tensor:
        """x with a row a token. Raises: CommonweightError where there are more rows or fewer than the step has."""
        flat = x.view(-1, x.shape[-1]) if x.is_contiguous() else x.reshape(-1, x.shape[-1])
        if len(flat) != step.length:
            raise CommonweightError(
                f"{self.name}: it has {counted(len(flat), 'row')} where the step has "
                f"{counted(step.length, 'token')}, so that it cannot be "
                "known whose they are"
            )
        return flat

    def rows(self, name: str, lead: Lead) -> Tensor:
        """Of each leading token its s, t or c, (n, ...), float32."""
        if self.kept[0] is not lead:
            self.kept = lead, {}
        if name not in self.kept[1]:
            self.kept[1][name] = self.held[name].index_select(0, lead.slots)
        return self.kept[1][name]

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if "t" not in self.held or (step := self.active()) is None:
            return None
        x = args[0]
        flat, held = self.whose(step, x).clone(), self.held["t"]
        if step.lead is not None:
            flat[: step.lead.count].mul_(self.rows("t", step.lead))
        for first, end, slot in step.spans:
            if slot in self.readers:
                flat[first:end].mul_(held[slot])
        return (flat.view(x.shape), *args[1:]), kwargs

    def after(self, module: nn.Module, args: tuple, kwargs: dict, y: Tensor) -> Tensor | None:
        step = self.active()
        if step is None or not self.held.keys() & {"A", "s", "c"}:
            return None
        flat, rows = self.whose(step, args[0]), self.whose(step, y)
        if step.lead is not None:
            self._each(rows[: step.lead.count], flat[: step.lead.count], step.lead)
        for first, end, slot in step.spans:
            if slot in self.readers:
                self._span(rows[first:end], flat[first:end], slot)
        return rows.view(y.shape)

    def _each(self, y: Tensor, x: Tensor, lead: Lead) -> None:
        """One token a request: y is written over."""
        if "s" in self.held:
            y.mul_(self.rows("s", lead))
        if "c" in self.held:
            y.add_(self.rows("c", lead))
        if "A" not in self.held:
            return
        A, B = self._factors(y.dtype)
        if lead.places is None:
            h = torch.bmm(A.index_select(0, lead.slots), x.unsqueeze(-1))
            y.unsqueeze(1).baddbmm_(h.mT, B.index_select(0, lead.slots))
            return
        A, B = A[: lead.top], B[: lead.top]
        beside = x.new_zeros(lead.top * lead.width, x.shape[-1]).index_copy_(0, lead.places, x)
        out = torch.bmm(torch.bmm(beside.view(lead.top, lead.width, -1), A.mT), B)
        y.add_(out.view(-1, y.shape[-1]).index_select(0, lead.places))

    def _span(self, y: Tensor, x: Tensor, slot: int) -> None:
        """The tokens of one prompt, likewise."""
        held = self.held
        if "s" in held:
            y.mul_(held["s"][slot])
        if "c" in held:
            y.add_(held["c"][slot])
        if "A" in held:
            A, B = self._factors(y.dtype)
            y.addmm_(x @ A[slot].T, B[slot])

    def _factors(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """A and B as the layer computes: they are kept in that format from the first read on."""
        if self.held["A"].dtype is not dtype:
            self.held |= {k: self.held[k].to(dtype) for k in "AB"}
        return self.held["A"], self.held["B"]


class Lanes:
    """The lanes of a model's layers and the slots of what is resident in them. One thread alone uses it.

    most: slots; above it, what was unused for longest gives its own away. It must be more than the readers of a step.
    Memory: a slot takes the numbers of the widest resident tenant, so that slots are made as they are needed.
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
            free = self.slots[oldest]
            self.forget(lambda e: e is oldest)
            return free
        free, self.size = self.size, min(2 * self.size, self.most)
        for lane in self.lanes.values():
            lane.grow()
        return free

    def forget(self, gone: Callable[[Edition], bool]) -> None:
        """Frees the slots of editions that are gone; what they held is zeroed, and the next one takes the place."""
        for edition in [e for e in self.slots if gone(e)]:
            slot = self.slots.pop(edition)
            for lane in self.lanes.values():
                lane.drop(slot)

    def open(self, step: Step | None) -> None:
        """What the passes of this thread read from now on; other threads' passes are not touched."""
        self.here.step = step

    def close(self) -> None:
        for lane in self.lanes.values():
            for handle in lane.handles:
                handle.remove()
        self.lanes.clear()
        self.slots.clear()
