"""Time to first token at p99 of quiet tenants while another one sends 64 requests at once, against without these.

16 requests at once, and 128 tokens a step, so that no step keeps others waiting long.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np

import commonweight as cw

from ..shapes import llama
from .setting import engine, prompts, request, row, stir

QUIET, EVERY, BURST = 24, 0.2, 64


def run(ours: cw.Engine, asked: list[list[int]], burst: bool) -> float:
    """p99 of the quiet tenants' times, seconds."""
    times: list[float] = []
    loud: list[cw.serve.Stream] = []
    streams = []
    for i in range(QUIET):
        if burst and i == QUIET // 4:
            loud = [ours.submit(request("loud", p, 32)) for p in asked[:BURST]]
        start, seen = time.perf_counter(), [False]

        def take(piece: cw.serve.Piece, start: float = start, seen: list[bool] = seen) -> None:
            if not seen[0]:
                seen[0] = True
                times.append(time.perf_counter() - start)

        streams.append(ours.submit(request(f"quiet{i % 8}", asked[-1 - i], 8), take))
        time.sleep(EVERY)
    while len(times) < QUIET:
        time.sleep(0.01)
    for stream in loud:
        stream.cancel()
    while ours.running or ours.waiting:
        time.sleep(0.01)
    return float(np.quantile(times, 0.99))


def main(seconds: float, **_: Any) -> list[dict[str, Any]]:
    host = cw.Host(llama().eval())
    names = ["loud", *(f"quiet{i}" for i in range(8))]
    for i, name in enumerate(names):
        host.add(name, "lora", rank=8, seed=i)
    stir(host, names)
    asked = prompts(4096, BURST + QUIET)
    ratios, begun = [], time.monotonic()
    with engine(host, 16, max_batch_tokens=128) as ours:
        run(ours, asked, True)
        while len(ratios) < 3 or time.monotonic() - begun < seconds:
            sides = [run(ours, asked, burst) for burst in ((False, True) if len(ratios) % 2 else (True, False))]
            without, beside = sides if len(ratios) % 2 else sides[::-1]
            ratios.append(beside / without)
    host.close()
    what = "serving, time to first token at p99 of quiet tenants beside a burst of 64 / without it, llama-8x512"
    return [row(what, ratios, 1.5, "time")]
