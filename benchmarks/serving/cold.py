"""First token of a tenant that is on disk alone, while 31 others decode, against the same one when it is in the batch.

Beside it: the time between two tokens of the others, while the tenant comes and while nobody does.
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from itertools import pairwise
from typing import Any

import commonweight as cw

from ..shapes import llama
from .setting import engine, prompts, request, stir

OTHERS, LENGTH = 31, 400


class Others:
    """31 tenants that decode until they are stopped, and when their tokens came."""

    def __init__(self, ours: cw.Engine, asked: list[list[int]]):
        self.times: list[list[float]] = [[] for _ in range(OTHERS)]
        self.started = threading.Semaphore(0)
        self.streams = [ours.submit(request(f"lora{i}", asked[i], LENGTH), self.sink(i)) for i in range(OTHERS)]
        for _ in range(OTHERS):
            self.started.acquire()

    def sink(self, i: int) -> Any:
        def take(piece: cw.serve.Piece) -> None:
            if not self.times[i]:
                self.started.release()
            self.times[i].append(time.perf_counter())

        return take

    def gaps(self, since: float, until: float) -> list[float]:
        return [b - a for t in self.times for a, b in pairwise(t) if since <= b <= until]

    def stop(self) -> None:
        for stream in self.streams:
            stream.cancel()


def first(ours: cw.Engine, prompt: list[int]) -> float:
    start = time.perf_counter()
    stream = ours.submit(request("cold", prompt, 1))
    if error := stream.answer().error:
        raise SystemExit(error)
    return time.perf_counter() - start


def main(seconds: float, **_: Any) -> list[dict[str, Any]]:
    asked = prompts(4096)
    more, slower, begun = [], [], time.monotonic()
    with tempfile.TemporaryDirectory() as at:
        store = cw.Commons(at)
        host = cw.Host(llama().eval())
        host.add("cold", "lora", rank=8, seed=99)
        stir(host, ["cold"])
        store.publish(host, "cold")
        host.close()
        host = cw.Host(llama().eval())
        names = [f"lora{i}" for i in range(OTHERS)]
        for i, name in enumerate(names):
            host.add(name, "lora", rank=8, seed=i)
        stir(host, names)
        with engine(host, store=store) as ours:
            while len(more) < 4 or time.monotonic() - begun < seconds:
                others = Others(ours, asked)
                first(ours, asked[-1])
                warm = [first(ours, asked[-1]) for _ in range(3)]
                ours.unload("cold")
                time.sleep(0.3)
                since = time.perf_counter()
                cold = first(ours, asked[-1])
                until = time.perf_counter()
                time.sleep(0.5)
                then = time.perf_counter()
                with_it, without = others.gaps(since, until), others.gaps(until + 0.1, then)
                others.stop()
                time.sleep(0.3)
                more.append(cold - statistics.median(warm))
                if with_it and without:
                    slower.append(max(with_it) / statistics.median(without))
        host.close()
    low, mid, high = statistics.quantiles(more, n=4)
    what = "serving, first token of a tenant on disk - the same one warm, 31 others decoding, llama-8x512"
    return [
        {
            "what": what, "unit": "seconds", "target": 0.02, "seconds": round(mid, 4),
            "spread": [round(low, 4), round(high, 4)], "rounds": len(more),
            "others_longest_gap": round(statistics.median(slower), 2) if slower else None,
        }
    ]  # fmt: skip
