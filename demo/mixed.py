"""One batch that holds rows of every tenant: is each row what it would be alone, and what does it cost?"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from commonweight import Host
from commonweight.adapt.base import tokenizer_of

Batch = dict[str, Tensor]


def encode(host: Host, texts: list[str]) -> Batch:
    found = tokenizer_of(host.model)(texts, truncation=True, max_length=128, padding=True, return_tensors="pt")
    return {k: found[k] for k in ("input_ids", "attention_mask")}


def draw(test: dict[str, list[str]], each: int) -> tuple[list[str], list[str]]:
    """(tenants, texts) of `each` test rows of every tenant, in a random order."""
    pairs = [(name, texts[i]) for name, texts in test.items() for i in range(each)]
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0)).tolist()
    return [pairs[i][0] for i in order], [pairs[i][1] for i in order]


def check(host: Host, test: dict[str, list[str]], each: int) -> dict[str, Any]:
    """Every row of a mixed batch against its tenant alone: in float32, then in the base's own dtype.

    float32 shows whether the routing is right: only the order of additions may differ, and a row agrees within
    1e-4. In bfloat16 that order alone may move a logit by some thousandths of the largest; there the largest difference
    and the predictions are told.
    """
    readers, texts = draw(test, each)
    batch = encode(host, texts)
    own = next(host.model.parameters()).dtype
    out = {"rows": len(readers), "tenants": len(test), "dtype": str(own).removeprefix("torch.")}
    host.model.float()
    out["float32"] = compare(host, readers, batch)
    host.model.to(own)  # exact: the float32 numbers came from this dtype
    out["own"] = compare(host, readers, batch)
    return out


def compare(host: Host, readers: list[str], batch: Batch) -> dict[str, Any]:
    agree = same = 0
    largest = scale = 0.0
    with torch.no_grad():
        with host.route(readers):
            mixed = host.model(**batch).logits.float()
        for name in host:
            mine = torch.tensor([i for i, r in enumerate(readers) if r == name])
            with host.route(name):
                alone = host.model(**{k: v[mine] for k, v in batch.items()}).logits.float()
            ours = mixed[mine, : alone.shape[1]]
            gap = (ours - alone).abs().amax(1)
            agree += int((gap <= 1e-4).sum())
            same += int((ours.argmax(1) == alone.argmax(1)).sum())
            largest, scale = max(largest, gap.max().item()), max(scale, alone.abs().max().item())
    return {"agree": agree, "same prediction": same, "largest difference": largest, "largest logit": scale}


def timing(host: Host, test: dict[str, list[str]], each: int, repeats: int) -> dict[str, Any]:
    """Milliseconds for the same rows: one mixed batch, and one batch per tenant after another. Tokens are made before;
    each batch is padded to its own longest row. The two take turns; the median and the range of the repeats."""
    readers, texts = draw(test, each)
    batch = encode(host, texts)
    alone = {n: encode(host, [t for r, t in zip(readers, texts) if r == n]) for n in test}

    def together() -> None:
        with host.route(readers):
            host.model(**batch)

    def in_turn() -> None:
        for name, rows in alone.items():
            with host.route(name):
                host.model(**rows)

    with torch.no_grad():
        together(), in_turn()
        pairs = [(clock(together), clock(in_turn)) for _ in range(repeats)]
    a, b = zip(*pairs)
    return {
        "rows each": each, "rows": len(readers), "repeats": repeats, "mixed": summary(a), "in turn": summary(b),
        "ratio": statistics.median(y / x for x, y in pairs),
    }  # fmt: skip


def clock(run: Callable[[], None]) -> float:
    started = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started)


def summary(values: tuple[float, ...]) -> dict[str, float]:
    return {"median": statistics.median(values), "least": min(values), "most": max(values)}
