"""Many finished tenants in the layers of one model: who sits where, and the hooks that read them.

Tenants of one rank sit in one bank, those of one common in a bank of the common (`bank`, `pooled`); in a step each bank
is read in one pair of products a layer, whatever the methods. Those who read sit close together, so that stacks are
read as they lie; the tokens of prompts go prompt by prompt.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, counted
from .bank import Bank
from .edition import Edition
from .pooled import Commons
from .readers import Part, Step

COMMONS = 4  # commons with a bank of their own; the tenants of others are read by factors of their own
NARROW = 8  # smaller ranks are read as this one


class _Here(threading.local):
    step: Step | None = None


class Lane:
    """One layer's hooks. The one before its forward is there where a tenant scales its input."""

    def __init__(self, lanes: Lanes, name: str, module: nn.Module):
        self.lanes, self.name, self.module = lanes, name, module
        self.handles = [module.register_forward_hook(self.after, with_kwargs=True)]
        self.scales = False

    def look_before(self) -> None:
        if not self.scales:
            self.scales = True
            self.handles.append(self.module.register_forward_pre_hook(self.before, with_kwargs=True))

    def active(self) -> list[tuple[Part, Any]]:
        step = self.lanes.here.step
        if step is None:
            return []
        return [(p, layer) for p in step.parts if (layer := p.bank.layers.get(self.name)) is not None]

    def rows(self, x: Tensor) -> Tensor:
        """x with a row a token. Raises: CommonweightError where there are more rows or fewer than the step has."""
        flat = x.view(-1, x.shape[-1]) if x.is_contiguous() else x.reshape(-1, x.shape[-1])
        step = self.lanes.here.step
        if step is not None and len(flat) != step.length:
            raise CommonweightError(
                f"{self.name}: it has {counted(len(flat), 'row')} where the step has "
                f"{counted(step.length, 'token')}, so that it cannot be "
                "known whose they are"
            )
        return flat

    def before(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        active = [(part, layer) for part, layer in self.active() if layer.scales_input()]
        if not active:
            return None
        x = args[0]
        flat = self.rows(x).clone()
        for part, layer in active:
            layer.before(flat, part)
        return (flat.view(x.shape), *args[1:]), kwargs

    def after(self, module: nn.Module, args: tuple, kwargs: dict, y: Tensor) -> Tensor | None:
        active = self.active()
        if not active:
            return None
        rows, x = self.rows(y), args[0]
        for part, layer in active:
            layer.after(rows, x, part)
        return rows.view(y.shape)


class Lanes:
    """The lanes of a model's layers and who sits in which bank. One thread alone uses it.

    groups: layer -> the name of those that are given its input, see `bank.together`. most: editions that are kept for
    when they are asked for again, so that what the cache has of their prefixes still counts.
    Memory: a seat takes the numbers of its bank's rank; there are at most twice as many as tenants that read at once.
    """

    def __init__(self, modules: Mapping[str, Any], most: int):
        self.modules, self.most, self.groups = modules, most, dict[str, str]()
        self._recent: dict[Edition, None] = {}  # the longest unused one first
        self.lanes: dict[str, Lane] = {}
        self.banks: dict[Any, Bank | Commons] = {}
        self.seats: dict[Any, dict[Edition, int]] = {}  # key of a bank -> who sits where
        self.here = _Here()

    def where(self, edition: Edition | None) -> Any:
        """The key of the bank that it belongs to; None for the plain base and where it has no common form."""
        if edition is None:
            return None
        if edition.common is not None:
            key = edition.common.key
            if key in self.banks or sum(isinstance(b, Commons) for b in self.banks.values()) < COMMONS:
                return key
        if edition.form is None:
            return None
        rank = max((len(f.A) for f in edition.form.values() if f.A is not None), default=0)
        return rank and max(NARROW, 1 << (rank - 1).bit_length())

    def sit(self, editions: Iterable[Edition | None]) -> dict[Edition, tuple[Any, int]]:
        """(bank, seat) of each reader of a step that has a common form. Those of one bank get its first seats, as far
        as that moves few of them."""
        present: dict[Any, list[Edition]] = {}
        for edition in dict.fromkeys(editions):
            if edition is None:
                continue
            self._recent.pop(edition, None)
            self._recent[edition] = None
            if (key := self.where(edition)) is not None:
                if key not in self.banks:
                    self.banks[key] = Bank(key, self.groups) if isinstance(key, int) else Commons()
                    self.seats[key] = {}
                present.setdefault(key, []).append(edition)
        for edition in list(self._recent)[: max(0, len(self._recent) - self.most)]:
            del self._recent[edition]
        return {e: (self.banks[k], seat) for k, these in present.items() for e, seat in self._sit(k, these).items()}

    def _sit(self, key: Any, present: Sequence[Edition]) -> dict[Edition, int]:
        seats = self.seats[key]
        most = len(present) + len(present) // 8
        stay = {e: seats[e] for e in present if seats.get(e, most) < most}
        taken = set(stay.values())
        free = (i for i in range(most) if i not in taken)
        for edition in present:
            if edition not in stay:
                seat = next(free)
                for other in [e for e, s in seats.items() if s == seat]:
                    del seats[other]
                self._put(key, seat, edition)
                seats[edition] = stay[edition] = seat
        return stay

    def _put(self, key: Any, seat: int, edition: Edition) -> None:
        for name in self.banks[key].put(seat, edition):
            if name not in self.lanes:
                self.lanes[name] = Lane(self, name, self.modules[name].module)
            if self.banks[key].layers[name].scales_input():
                self.lanes[name].look_before()

    def order(self, edition: Edition | None) -> tuple[int, int]:
        """Readers of a step stand best in this order: bank by bank, and by seats."""
        if edition is not None:
            for i, seats in enumerate(self.seats.values()):
                if edition in seats:
                    return i, seats[edition]
        return -1, 0

    def known(self) -> list[Edition]:
        """Of whom anything is kept."""
        return [*{**self._recent, **{e: None for seats in self.seats.values() for e in seats}}]

    def forget(self, gone: Callable[[Edition], bool]) -> None:
        """Frees the seats of editions that are gone; what they held is zeroed, and a common that nobody reads goes."""
        self._recent = {e: None for e in self._recent if not gone(e)}
        for key, seats in list(self.seats.items()):
            for edition in [e for e in seats if gone(e)]:
                self.banks[key].clear(seats.pop(edition))
            if not seats and not isinstance(key, int):
                del self.seats[key], self.banks[key]

    def open(self, step: Step | None) -> None:
        """What the passes of this thread read from now on; other threads' passes are not touched."""
        self.here.step = step

    def close(self) -> None:
        for lane in self.lanes.values():
            for handle in lane.handles:
                handle.remove()
        self.lanes.clear()
        self.banks.clear()
        self.seats.clear()
        self._recent.clear()


def inputs(modules: Mapping[str, Any]) -> tuple[list[tuple[str, Tensor]], Callable[[], None]]:
    """(layer, input) of each linear layer in the order of a pass that follows, and what ends the watching."""
    seen: list[tuple[str, Tensor]] = []
    handles = []
    for name, at in modules.items():
        if at.kind == "linear" and at.slot == "weight" and isinstance(at.module, nn.Module):

            def hook(module: nn.Module, args: tuple, name: str = name) -> None:
                seen.append((name, args[0] if args else torch.empty(0)))

            handles.append(at.module.register_forward_pre_hook(hook))

    def end() -> None:
        for handle in handles:
            handle.remove()

    return seen, end
