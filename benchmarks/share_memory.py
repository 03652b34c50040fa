"""Memories that layers read: a hashed weight beside a dense layer, product keys beside scores of every key.

python -m benchmarks.share_memory
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from commonweight.address import Hashed
from commonweight.builder.forms import Recalled
from commonweight.builder.forms.keys import nearest

from .harness import alternate, store

WIDTH, RATIO = 4096, 16
CHUNK = WIDTH // RATIO


def hashed_layer() -> torch.nn.Linear:
    """A layer of WIDTH by WIDTH that holds a sixteenth of its numbers."""
    layer = torch.nn.Linear(WIDTH, WIDTH, bias=False)
    layer.__class__ = type("RecalledLinear", (Recalled, torch.nn.Linear), {})
    size = WIDTH * WIDTH // RATIO
    layer.reads = {"weight": (Hashed(0, (WIDTH, WIDTH), size, CHUNK), ["weight_pool", "weight_scale"])}  # type: ignore
    del layer.weight
    layer.weight_pool = torch.nn.Parameter(torch.randn(size))
    layer.weight_scale = torch.nn.Parameter(torch.full((1,), 0.02))
    return layer


def main() -> list[dict]:
    rows = []
    g = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        ours, dense = hashed_layer(), torch.nn.Linear(WIDTH, WIDTH, bias=False)
        for tokens in (1, 16, 64, 256):
            x = torch.randn(tokens, WIDTH, generator=g)
            found = alternate(lambda x=x: ours(x), lambda x=x: dense(x), rounds=9)
            size = f"{WIDTH} x {WIDTH}, chunks of {CHUNK}, {tokens} tokens"
            what = f"hashed memory (STABLE-RPS), {RATIO}x, {size}: ours / dense"
            rows.append({"what": what, "unit": "time", "target": 1.5, **found})
            print(rows[-1], flush=True)
        n, width, k = 1024, 512, 32
        keys = torch.randn(2, 1, n, width // 2, generator=g)
        every = torch.cat([keys[0, 0].repeat_interleave(n, 0), keys[1, 0].repeat(n, 1)], 1)  # key of value i n + j
        q = torch.randn(1, 1, width, generator=g)
        _, at = nearest(q, keys, k)
        want = F.linear(q[0, 0], every).topk(k)
        assert torch.equal(at[0, 0].sort()[0], want.indices.sort()[0])
        found = alternate(lambda: F.linear(q[0, 0], every).topk(k), lambda: nearest(q, keys, k), rounds=9)
        what = f"product keys, {n * n:,} values, exact top-{k} of width {width}, a token: dense and topk / ours"
        times = {"ours_ms": found["theirs_ms"], "theirs_ms": found["ours_ms"]}
        rows.append({"what": what, "unit": "times faster", "target": 50, **found, **times})
        print(rows[-1], flush=True)
    store("share_memory", rows)
    return rows


if __name__ == "__main__":
    main()
