"""32 concurrent greedy requests of 32 tenants, against the same requests to the engine's own base.

Every case's tenants have left the batch when it runs again, so that each request brings its tenant in. Beside it stands
what transformers' own continuous batching makes of the same requests to the plain model.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import torch
from transformers import ContinuousBatchingConfig, GenerationConfig

import commonweight as cw

from ..harness import DEVICE
from ..shapes import llama
from .setting import NEW, REQUESTS, answered, engine, measured, prompts, request, row, stir

FIVE = ("lora", "ia3", "dora", "mos", "vb-lora")
CASES = {
    "lora": ("32 LoRA r8", 0.92),
    "five": ("32 tenants of five methods", 0.92),
    "mos": ("32 MoS of one common", 0.95),
}


def add(host: cw.Host) -> None:
    for i in range(REQUESTS):
        host.add(f"lora{i}", "lora", rank=8, seed=i)
        host.add(f"five{i}", FIVE[i % 5], seed=i)
        host.add(f"mos{i}", "mos", seed=i, common="pools")
    stir(host, list(host))


def plain(model: Any, asked: list[list[int]]) -> Callable[[], None]:
    """transformers' own loop, its attention and its settings for a CPU, with a cache and batch as large as ours."""
    config = ContinuousBatchingConfig(
        page_size=32, num_blocks=513, max_batch_tokens=512, max_requests_per_batch=REQUESTS, allow_block_sharing=False
    )
    how = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=-1, pad_token_id=0)

    def go() -> None:
        before = model.config._attn_implementation
        model.generate_batch(asked, generation_config=how, continuous_batching_config=config, progress_bar=False)
        model.set_attn_implementation(before)

    return go


def of(name: str, model: Any, seconds: float) -> list[dict[str, Any]]:
    asked = prompts(model.config.vocab_size)
    host = cw.Host(model.eval())
    add(host)
    ours = engine(host)

    def run(kind: str | None) -> Callable[[], None]:
        requests = [request(kind and f"{kind}{i}", p) for i, p in enumerate(asked)]
        return lambda: answered(ours, requests)

    found = measured({"base": run(None), **{kind: run(kind) for kind in CASES}}, seconds)
    ours.close()
    host.close()
    base = found["base"]
    speeds = {k: round(REQUESTS * NEW / statistics.median(v), 1) for k, v in found.items()}
    return [
        row(
            f"serving, {what} / the engine's base, {name}", [b / s for b, s in zip(base, found[kind])], target,
            "of its speed", tokens_per_second=speeds[kind], base_tokens_per_second=speeds["base"],
        )
        for kind, (what, target) in CASES.items()
    ]  # fmt: skip


def beside(name: str, model: Any, seconds: float) -> dict[str, Any]:
    """Our base against transformers' continuous batching: two copies of the model, in turn."""
    import copy

    asked = prompts(model.config.vocab_size)
    theirs = plain(copy.deepcopy(model).eval(), asked)
    with engine(cw.Host(model.eval())) as ours:
        found = measured({"ours": lambda: answered(ours, [request(None, p) for p in asked]), "theirs": theirs}, seconds)
    ratios = [t / o for o, t in zip(found["ours"], found["theirs"])]
    speed = round(REQUESTS * NEW / statistics.median(found["ours"]), 1)
    what = f"serving the base, transformers' continuous batching / ours, {name}"
    return row(what, ratios, None, "times faster", tokens_per_second=speed)


def main(seconds: float, smollm2: str = "", **_: Any) -> list[dict[str, Any]]:
    models: dict[str, Callable[[], Any]] = {"llama-8x512": llama}
    if smollm2:
        from transformers import AutoModelForCausalLM

        models["SmolLM2-135M"] = lambda: AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32).to(DEVICE)
    rows = [r for name, make in models.items() for r in of(name, make(), 0.85 * seconds / len(models))]
    return [*rows, beside("llama-8x512", llama(), 0.15 * seconds)]
