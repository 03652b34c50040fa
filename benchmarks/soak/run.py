"""Runs the state machine until so many requests were made, on one server, and writes down its memory meanwhile."""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import HealthCheck, Phase, Verbosity, seed, settings
from hypothesis.stateful import run_state_machine_as_test

from .machine import machine
from .shop import Shop
from .world import World, Wrong


class Sample(NamedTuple):
    seconds: float
    requests: int
    rss: int


def soak(
    shop: Shop, folder: Path, requests: int, first: int = 0, told: Callable[[Sample], None] = lambda s: None,
    steps: int = 50, runs: int = 8,
) -> dict[str, Any]:  # fmt: skip
    """steps: of a run; runs: between two looks at the memory, in one of hypothesis' tests, whose own memory ends with
    it. Raises: Wrong, or what went wrong, with the steps that led there."""
    for name in shop.names:  # what they answer is known before the memory is looked at
        for version in range(1, shop.versions + 1):
            _ = shop.told(name, version, shop.prompt(name, 0))
    world = World(shop, folder)
    how = settings(
        max_examples=runs, stateful_step_count=steps, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), verbosity=Verbosity.quiet, print_blob=False,
        report_multiple_bugs=False,
    )  # fmt: skip
    kind, start, samples, n = machine(world), time.monotonic(), [], first
    try:
        while world.counts.requests < requests:
            try:
                run_state_machine_as_test(seed(n)(kind), settings=how)
            except Exception as e:
                if Wrong.seen is None:
                    raise
                raise Wrong("\n".join([*world.steps, str(Wrong.seen)])) from e
            n += 1
            gc.collect()
            samples.append(Sample(round(time.monotonic() - start, 1), world.counts.requests, _rss()))
            told(samples[-1])
        world.quiet()
    finally:
        world.close()
    counts = world.counts
    return {
        "requests": counts.requests, "answer tokens compared": counts.tokens, "wrong": 0, "leaks": 0,
        "ties": counts.ties, "seconds": samples[-1].seconds, "seed": first, "rounds": n - first,
        "tenants": len(shop.names), "versions": shop.versions, "say their canary": round(shop.speaking(), 3),
        "kinds": dict(sorted(counts.kinds.items())), "ends": dict(sorted(counts.ends.items())),
        "growth": growth(samples), "memory": [s._asdict() for s in samples],
    }  # fmt: skip


def growth(samples: list[Sample]) -> float | None:
    """Of the mean of the last quarter over that of the second one; None where there are few."""
    q = len(samples) // 4
    if q < 2:
        return None
    mean = [sum(s.rss for s in part) / len(part) for part in (samples[q : 2 * q], samples[-q:])]
    return round(mean[1] / mean[0] - 1, 4)


def _rss() -> int:
    """Bytes in memory; 0 where the system does not say."""
    at = Path("/proc/self/statm")
    return int(at.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if at.exists() else 0
