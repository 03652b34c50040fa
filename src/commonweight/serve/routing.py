"""Whose tokens a step has: the route within which the model's pass of the step runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..host import Host, Tenant
from ..host.route import Route


class Router:
    """Makes the route of a step, and keeps it while the same requests have one token each."""

    def __init__(self, host: Host):
        self.host = host
        head = host.model.get_output_embeddings()  # type: ignore[operator]
        names = {id(m): n for n, m in host.model.named_modules()}
        self.head = names.get(id(head), "")
        self._last: tuple[Any, Route | None] = ((), None)

    def run(self, readers: Sequence[tuple[Tenant | None, int]], processor: Any, run: Callable[[], None]) -> None:
        """readers: (who, how many tokens) of each request, in the order of the packed row."""
        whole = any(t is not None and self.head in t.table for t, _ in readers)
        runner = processor.model_runner
        runner._model_supports_logits_to_keep = False if whole else None
        with self.host.base.current.within(self.route(readers)):
            run()

    def route(self, readers: Sequence[tuple[Tenant | None, int]]) -> Route | None:
        key = tuple((None if t is None else t.number, n) for t, n in readers)
        if self._last[0] == key:
            return self._last[1]
        tenants = {id(t): t for t, _ in readers}
        if len(tenants) == 1:
            one = readers[0][0]
            route = None if one is None else Route(single=one)
        else:
            flat = [t for t, n in readers for _ in range(n)]
            route = Route.of(flat, (len(flat),))
        self._last = key, route
        return route
