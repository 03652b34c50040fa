"""Whose tokens a step has: lanes for tenants of the common form, the host's route for the rest, in the same step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..host import Host
from ..host.route import Route
from .attention import aside
from .bank import together
from .device import entry
from .edition import Edition
from .lanes import Lanes, inputs
from .readers import Step

Readers = Sequence[tuple[Edition | None, int]]


class Kept(NamedTuple):
    """What a step of these readers needs; it holds while the same tenants have the same number of tokens."""

    key: Any
    step: Step | None
    route: Route | None


class Router:
    """Opens what a step reads: the seats of its tenants, and a route for those without one."""

    def __init__(self, host: Host, most: int):
        self.host = host
        head = host.model.get_output_embeddings()  # type: ignore[operator]
        self.head = next((n for n, m in host.model.named_modules() if m is head), "")
        self.lanes = Lanes(host.base.modules, most)
        self._device = entry(host.model)
        self._kept = Kept(None, None, None)
        self._watched = False

    def run(self, readers: Readers, processor: Any, run: Callable[[], None], contexts: Tensor | None = None) -> None:
        """readers: (who, how many tokens) of each request, in the order of the packed row. contexts: (T, d), the
        embedding of the prompt of each token's request, where a tenant goes by it."""
        whole = any(e is not None and e.reads(self.head) for e, _ in readers)
        processor.model_runner._model_supports_logits_to_keep = False if whole else None
        kept = self.of(readers)
        self.place(readers, processor.inputs_and_outputs.position_ids)
        if kept.route is not None:
            kept.route.context = contexts
        self.prompts(kept.route)
        self.lanes.open(kept.step)
        seen, end = ([], None) if self._watched else inputs(self.host.base.modules)
        try:
            with self.host.base.current.within(kept.route):
                run()
        finally:
            self.lanes.open(None)
            if end is not None:  # the first step, which is the plain base's
                end()
                self._watched = True
                self.lanes.groups.update(together(seen))

    @torch.no_grad()
    def whole(self, edition: Edition, tokens: Sequence[int]) -> Tensor:
        """The scores (vocabulary,) of what follows the tokens, for a tenant that reads whole rows: by a pass over all
        of them without a cache, when that of the step has ended. Cost: that pass, for each new token."""
        model: Any = self.host.model
        self.lanes.open(None)
        ids = torch.tensor([list(tokens)], device=self._device)
        with self.host.base.current.within(Route(single=edition.tenants[0])), aside():
            return model(input_ids=ids, use_cache=False).logits[0, -1]

    @torch.no_grad()
    def prompts(self, route: Route | None) -> None:
        """Runs the prompts of a route's tenants by themselves, before seats are taken and the cache is in use."""
        with aside():
            for front in self.host.base.fronts if route is not None else ():
                if route.touches(front.at.name):  # type: ignore[union-attr]
                    front.prepare(route)  # type: ignore[arg-type]

    def place(self, readers: Readers, positions: Tensor) -> None:
        """Tells editions that count positions where their tokens of this step stand."""
        counting = {e for e, _ in readers if e is not None and e.places is not None}
        for edition in counting:
            flat = [e is edition for e, n in readers for _ in range(n)]
            assert edition.places is not None
            edition.places.now = positions[: len(flat)][torch.tensor(flat, device=positions.device)]

    def forget(self, gone: Callable[[Edition], bool]) -> None:
        """Keeps nothing of editions that are gone."""
        self.lanes.forget(gone)
        self._kept = Kept(None, None, None)

    def of(self, readers: Readers) -> Kept:
        key = tuple((0 if e is None else e.stamp, n) for e, n in readers)
        if self._kept.key != key:
            seats = self.lanes.sit(e for e, _ in readers)
            nowhere = None, 0
            step = Step([(*seats.get(e, nowhere), n) for e, n in readers], self._device) if seats else None  # type: ignore[arg-type]
            rest = [(None if e is None or e in seats or e.whole else e, n) for e, n in readers]
            self._kept = Kept(key, step, _route(rest))
        return self._kept


def _route(readers: Readers) -> Route | None:
    tenants = [None if e is None else e.reader for e, _ in readers]
    if all(t is tenants[0] for t in tenants) and not any(t is not None and t.prompted for t in tenants):
        return None if tenants[0] is None else Route(single=tenants[0])
    flat = [t for t, (_, n) in zip(tenants, readers) for _ in range(n)]
    return Route.of(flat, (len(flat),))
