"""Requests per second of 2,000 tenants, drawn by Zipf's law, against 5 tenants drawn evenly. LoRA r8 on q and v."""

from __future__ import annotations

import random
import statistics
from typing import Any

import commonweight as cw

from ..shapes import llama
from .setting import answered, engine, measured, prompts, request, row, stir

TENANTS, FEW, NUMBER = 2000, 5, 96


def main(seconds: float, **_: Any) -> list[dict[str, Any]]:
    host = cw.Host(llama().eval())
    names = [f"t{i}" for i in range(TENANTS)]
    for i, name in enumerate(names):
        host.add(name, "lora", rank=8, seed=i, sites="*.q_proj|*.v_proj")
    stir(host, names)
    draws = random.Random(5)
    shares = [1 / (i + 1) for i in range(TENANTS)]
    asked = prompts(4096, NUMBER)
    with engine(host) as ours:

        def many() -> None:
            answered(ours, [request(t, p) for t, p in zip(draws.choices(names, shares, k=NUMBER), asked)])

        def few() -> None:
            answered(ours, [request(t, p) for t, p in zip(draws.choices(names[:FEW], k=NUMBER), asked)])

        found = measured({"many": many, "few": few}, seconds)
    host.close()
    ratios = [f / m for f, m in zip(found["few"], found["many"])]
    speed = round(NUMBER / statistics.median(found["many"]), 2)
    what = "serving requests per second, 2,000 tenants by Zipf / 5 tenants, LoRA r8 on q and v, llama-8x512"
    return [row(what, ratios, 0.97, "of its speed", requests_per_second=speed)]
