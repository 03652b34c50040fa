"""Serving: output tokens per second of many tenants in one engine, against the engine's own base and against PEFT.

    python -m benchmarks.serving [--smollm2 FOLDER]

32 concurrent greedy requests of 24 to 63 prompt tokens and 24 new ones. Every case runs in turn, and each round's cases
are compared with the base of their round. With PEFT the same requests are one padded batch with `adapter_names`, and
one after another with `set_adapter` (8 of them, times 4).
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

import commonweight as cw

from .harness import store
from .shapes import TARGETS, llama

REQUESTS, NEW, ROUNDS = 32, 24, 7
FIVE = ("lora", "ia3", "dora", "mos", "vb-lora")


def prompts(vocabulary: int) -> list[list[int]]:
    r = random.Random(1)
    return [[r.randrange(5, vocabulary) for _ in range(r.randrange(24, 64))] for _ in range(REQUESTS)]


def tenants(host: cw.Host) -> dict[str, list[str | None]]:
    """Case -> the tenant of each request."""
    for i in range(REQUESTS):
        host.add(f"lora{i}", "lora", rank=8, seed=i)
        host.add(f"five{i}", FIVE[i % 5], seed=i)
        host.add(f"mos{i}", "mos", seed=i, common="pools")
    for name in host:
        for p in host[name].parameters():
            p.data.add_(0.01 * torch.randn(p.shape))
    cases: dict[str, list[str | None]] = {"base": [None] * REQUESTS}
    for kind, what in (("lora", "32 LoRA r8"), ("five", "32 tenants of five methods"), ("mos", "32 MoS of one common")):
        cases[what] = [f"{kind}{i}" for i in range(REQUESTS)]
    return cases


def by_peft(asked: list[list[int]]) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """(one padded batch, one request after another); the second answers a quarter of the requests."""
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules=TARGETS["llama-8x512"], init_lora_weights=False)
    model = get_peft_model(llama().eval(), config, adapter_name="t0")
    names = [f"t{i}" for i in range(REQUESTS)]
    for n in names[1:]:
        model.add_adapter(n, config)
    longest = max(map(len, asked))
    ids = torch.tensor([[0] * (longest - len(p)) + p for p in asked])
    mask = (torch.arange(longest)[None] >= torch.tensor([longest - len(p) for p in asked])[:, None]).long()
    how: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False}

    @torch.inference_mode()
    def padded():
        model.generate(input_ids=ids, attention_mask=mask, adapter_names=names, **how)

    @torch.inference_mode()
    def swapped():
        for name, prompt in zip(names[: REQUESTS // 4], asked):
            model.set_adapter(name)
            one = torch.tensor([prompt])
            model.generate(input_ids=one, attention_mask=torch.ones_like(one), **how)

    return padded, swapped


def measured(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each case, round by round; the first round, which warms up, is left out."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for i in range(rounds + 1):
        for name in order if i % 2 else reversed(order):
            start = time.perf_counter()
            runs[name]()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def row(what: str, ratios: list[float], target: float | None, unit: str, **more: Any) -> dict[str, Any]:
    low, mid, high = statistics.quantiles(ratios, n=4)
    spread = [round(low, 3), round(high, 3)]
    return {"what": what, "unit": unit, "target": target, "ratio": round(mid, 3), "spread": spread, **more}


def of(name: str, model: torch.nn.Module, peft: bool) -> list[dict[str, Any]]:
    host = cw.Host(model.eval())
    cases = tenants(host)
    asked = prompts(model.config.vocab_size)  # type: ignore[arg-type,union-attr]
    engine = cw.Engine(host, max_requests=REQUESTS)

    def run(readers: list[str | None]) -> Callable[[], None]:
        requests = [
            cw.Request(tenant=t, prompt=p, max_new_tokens=NEW, temperature=0, ignore_eos=True)
            for t, p in zip(readers, asked)
        ]

        def go() -> None:
            if wrong := next((a.error for a in engine.generate(requests) if a.error), None):
                raise SystemExit(wrong)

        return go

    runs: dict[str, Callable[[], Any]] = {case: run(readers) for case, readers in cases.items()}
    if peft:
        runs["PEFT padded"], runs["PEFT swapping"] = by_peft(asked)
    seconds = measured(runs, ROUNDS)
    engine.close()
    host.close()
    base, lora = seconds["base"], seconds["32 LoRA r8"]
    speed = round(REQUESTS * NEW / statistics.median(base), 1)
    targets = {"32 LoRA r8": 0.92, "32 tenants of five methods": 0.92, "32 MoS of one common": 0.95}
    rows = [
        row(
            f"serving, {case} / the engine's base, {name}", [b / s for b, s in zip(base, seconds[case])], target,
            "of its speed", base_tokens_per_second=speed,
        )
        for case, target in targets.items()
    ]  # fmt: skip
    if peft:
        for case, factor in (("padded", 1), ("swapping", 4)):
            ratios = [factor * s / x for s, x in zip(seconds[f"PEFT {case}"], lora)]
            rows.append(row(f"serving 32 LoRA r8, PEFT {case} / ours, {name}", ratios, None, "times faster"))
    return rows


def main(smollm2: str = "") -> list[dict[str, Any]]:
    rows = of("llama-8x512", llama(), peft=True)
    if smollm2:
        from transformers import AutoModelForCausalLM

        rows += of("SmolLM2-135M", AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32), peft=False)
    store("serving", rows)
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--smollm2", default="", help="a folder with SmolLM2-135M-Instruct")
    for found in main(parser.parse_args().smollm2):
        print(found["what"], found["ratio"], found["spread"], sep="  ")
