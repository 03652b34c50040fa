"""Inference where half of the tokens skip a part of each block (DyT) or the whole block (CoDA), and where all skip half
of the blocks (DAS), against the plain base. CoDA chooses over whole rows, which a causal decoder does not see: beside
MiniLM it runs on EuroBERT, whose layers are Llama's with attention to both sides, in the sizes of the 8-layer Llama.

python -m benchmarks.skipping
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import EuroBertConfig, EuroBertForMaskedLM

import commonweight as cw

from .harness import DEVICE, alternate, store
from .shapes import BASES, SIZES, batch

ROWS, LENGTH = 16, 128
SIDES = (  # base, method, options, what is computed, wanted of the base's time
    ("minilm", "dyt", {}, "with half of the tokens", 0.75),
    ("llama-8x512", "dyt", {}, "with half of the tokens", 0.75),
    ("minilm", "coda", {}, "with half of the tokens", 0.75),
    ("minilm", "coda", {"reduction": 4.0}, "with a quarter of the tokens", 0.5),
    ("eurobert-8x512", "coda", {}, "with half of the tokens", 0.75),
    ("minilm", "das", {"skipped": ("*.1", "*.3", "*.5")}, "without half of the blocks", 0.75),
    ("llama-8x512", "das", {"skipped": ("*.1", "*.3", "*.5", "*.7")}, "without half of the blocks", 0.75),
)


def eurobert() -> nn.Module:
    torch.manual_seed(0)
    return EuroBertForMaskedLM(EuroBertConfig(**SIZES)).to(DEVICE)


def halved(host: cw.Host, name: str, data: dict[str, Tensor]) -> None:
    """Moves the selectors of a DyT tenant so that half of these tokens skip, part after part."""
    tenant, inner = host[name], dict(host.model.named_modules())
    parts = [use.site for use in tenant.plan.uses]
    first = {p: p if p in inner else f"{p.rpartition('.')[0]}.intermediate.dense" for p in parts}

    def move(part: str, module: nn.Module, args: tuple[Any, ...]) -> None:
        logits = args[0] @ tenant.pools[f"{part}.select"]
        tenant.pools[f"{part}.select_bias"].fill_(-float(logits.median()))

    handles = [inner[m].register_forward_pre_hook(partial(move, p), prepend=True) for p, m in first.items()]
    with torch.no_grad(), host.route(name):
        host.model(**data)
    for h in handles:
        h.remove()


def sides(base: str, method: str, **options: Any) -> tuple[Callable[[], Any], Callable[[], Any]]:
    made = {**BASES, "eurobert-8x512": eurobert}[base]
    model, data = made().eval(), batch(base, ROWS, LENGTH)
    host = cw.Host(model)
    host.add("t", method, **options)
    if method == "dyt":
        halved(host, "t", data)

    def run(name: str | None) -> None:
        with torch.no_grad(), host.route(name):
            model(**data, use_cache=False)

    return partial(run, "t"), partial(run, None)


def main(rounds: int = 15) -> list[dict]:
    rows = []
    for base, method, options, many, wanted in SIDES:
        rows.append(
            {
                "what": f"inference, {method} {many} / the plain base, {base}, {ROWS}x{LENGTH}",
                "unit": "time",
                "target": wanted,
                **alternate(*sides(base, method, **options), rounds),
            }
        )
    store("skipping", rows)
    return rows


if __name__ == "__main__":
    for row in main():
        print(row)
