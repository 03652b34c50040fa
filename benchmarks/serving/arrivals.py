"""Requests that come in time: 32 LoRA r8 tenants, prompts of 24 to 512 tokens, 8 to 128 new ones, Poisson arrivals.

Ours takes each request when it comes. PEFT takes all that wait as one batch, padded on the left, with `adapter_names`,
for as long as the longest answer takes; or one request after another with `set_adapter`, of which every eighth is run
and the time taken eight times. The figure is the time from the first arrival to the last answer.
"""

from __future__ import annotations

import random
import statistics
import time
from typing import Any, NamedTuple

import torch

import commonweight as cw

from ..harness import DEVICE
from ..shapes import TARGETS, llama
from .setting import REQUESTS, engine, measured, request, row, stir

NUMBER, RATE, PART = 24, 12.0, 8  # requests, a second, one of so many is run by swapping


class Ask(NamedTuple):
    at: float
    tenant: str
    prompt: list[int]
    new: int


def workload() -> list[Ask]:
    r, at, out = random.Random(3), 0.0, []
    for _ in range(NUMBER):
        length, new = (round(2 ** r.uniform(*map(_log, ends))) for ends in ((24, 512), (8, 128)))
        out.append(Ask(at, f"t{r.randrange(REQUESTS)}", [r.randrange(5, 4096) for _ in range(length)], new))
        at += r.expovariate(RATE)
    return out


def _log(x: float) -> float:
    return torch.tensor(x, dtype=torch.float64).log2().item()


def by_ours(ours: cw.Engine, asked: list[Ask]) -> None:
    start, streams = time.perf_counter(), []
    for ask in asked:
        time.sleep(max(0.0, start + ask.at - time.perf_counter()))
        streams.append(ours.submit(request(ask.tenant, ask.prompt, ask.new)))
    if wrong := next((e for s in streams if (e := s.answer().error)), None):
        raise SystemExit(wrong)


def by_batches(model: Any, asked: list[Ask]) -> None:
    start, at = time.perf_counter(), 0
    while at < len(asked):
        time.sleep(max(0.0, start + asked[at].at - time.perf_counter()))
        now = time.perf_counter() - start
        batch = [a for a in asked[at : at + REQUESTS] if a.at <= now] or asked[at : at + 1]
        longest = max(len(a.prompt) for a in batch)
        padded = [longest - len(a.prompt) for a in batch]
        ids = torch.tensor([[0] * n + a.prompt for n, a in zip(padded, batch)], device=DEVICE)
        generate(model, ids, max(a.new for a in batch), [a.tenant for a in batch], torch.tensor(padded, device=DEVICE))
        at += len(batch)


def by_swapping(model: Any, asked: list[Ask]) -> float:
    start = time.perf_counter()
    for ask in asked[::PART]:
        model.set_adapter(ask.tenant)
        ids = torch.tensor([ask.prompt], device=DEVICE)
        generate(model, ids, ask.new, None, ids.new_zeros(1))
    return PART * (time.perf_counter() - start)


@torch.inference_mode()
def generate(model: Any, ids: torch.Tensor, new: int, names: list[str] | None, padded: torch.Tensor) -> None:
    mask = (torch.arange(ids.shape[1], device=DEVICE)[None] >= padded[:, None]).long()
    more = {} if names is None else {"adapter_names": names}
    model.generate(input_ids=ids, attention_mask=mask, max_new_tokens=new, min_new_tokens=new, do_sample=False, **more)


def main(seconds: float, **_: Any) -> list[dict[str, Any]]:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=8, target_modules=TARGETS["llama-8x512"], init_lora_weights=False)
    theirs = get_peft_model(llama().eval(), config, adapter_name="t0")
    host = cw.Host(llama().eval())
    names = [f"t{i}" for i in range(REQUESTS)]
    for i, name in enumerate(names):
        host.add(name, "lora", rank=8, seed=i)
        if i:
            theirs.add_adapter(name, config)
    stir(host, names)
    theirs.eval()
    asked = workload()
    with engine(host) as ours:
        found = measured(
            {
                "ours": lambda: by_ours(ours, asked), "batches": lambda: by_batches(theirs, asked),
                "swapping": lambda: by_swapping(theirs, asked),
            },
            seconds,
        )  # fmt: skip
    host.close()
    speed = round(sum(a.new for a in asked) / statistics.median(found["ours"]), 1)
    rows = []
    for kind, what, target in (("batches", "PEFT padded batches", 3.0), ("swapping", "PEFT swapping adapters", 10.0)):
        ratios = [t / o for o, t in zip(found["ours"], found[kind])]
        what = f"serving arrivals in time, 32 LoRA r8, {what} / ours, llama-8x512"
        rows.append(row(what, ratios, target, "times faster", tokens_per_second=speed))
    return rows
