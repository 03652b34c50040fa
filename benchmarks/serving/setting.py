"""What the cases share: requests, tenants, and rounds in which every side runs in turn."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch

import commonweight as cw

REQUESTS, NEW, LEAST = 32, 24, 3
APART = 1.2  # seconds between sides: whoever has asked within the last one is about, and shares an engine's steps


def prompts(vocabulary: int, number: int = REQUESTS, seed: int = 1) -> list[list[int]]:
    r = random.Random(seed)
    return [[r.randrange(5, vocabulary) for _ in range(r.randrange(24, 64))] for _ in range(number)]


def stir(host: cw.Host, names: Sequence[str]) -> None:
    """Moves tenants away from their start, so that they are not the base."""
    g = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in names:
            for p in host[name].parameters():
                p.add_(0.01 * torch.randn(p.shape, generator=g).to(p.device))


def request(tenant: str | None, prompt: list[int], new: int = NEW) -> cw.Request:
    return cw.Request(tenant=tenant, prompt=prompt, max_new_tokens=new, temperature=0, ignore_eos=True)


def answered(engine: cw.Engine, requests: Sequence[cw.Request]) -> None:
    if wrong := next((a.error for a in engine.generate(requests) if a.error), None):
        raise SystemExit(wrong)


def engine(host: cw.Host, requests: int = REQUESTS, **more: Any) -> cw.Engine:
    """Without a cache of prefixes: the same prompts come each round."""
    return cw.Engine(host, max_requests=requests, prefix_cache=False, **more)


def measured(runs: dict[str, Callable[[], float | None]], seconds: float) -> dict[str, list[float]]:
    """Seconds of each side, round by round, for about as long as asked for; the first round warms up and is left out.

    A side may say itself how long it took. The order turns round with each round.
    """
    found: dict[str, list[float]] = {name: [] for name in runs}
    begun, i = time.monotonic(), 0
    while True:
        for name in list(runs) if i % 2 else reversed(runs):
            time.sleep(APART)
            start = time.perf_counter()
            told = runs[name]()
            if i:
                found[name].append(time.perf_counter() - start if told is None else told)
        i += 1
        if i > LEAST and (time.monotonic() - begun) * (i + 1) / i > seconds:
            return found


def row(what: str, ratios: Sequence[float], target: float | None, unit: str, **more: Any) -> dict[str, Any]:
    low, mid, high = statistics.quantiles(ratios, n=4)
    spread = [round(low, 3), round(high, 3)]
    return {"what": what, "unit": unit, "target": target, "ratio": round(mid, 3), "spread": spread,
            "rounds": len(ratios), **more}  # fmt: skip
