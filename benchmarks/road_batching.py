"""RoAd's mixed batch against an element-wise product's: 32 rows, 32 tenants, the same sites; both on this library.

The element-wise product is (IA)3's, one factor per output (or input) of a layer. RoAd's paper says that its rotation,
two products and a sum, costs a mixed batch no more.

    python -m benchmarks.road_batching
"""

from __future__ import annotations

import torch

import commonweight as cw

from .harness import alternate, store
from .shapes import BASES, batch

TENANTS, LENGTH = 32, 32


def build(base: str, method: str, **options: int):
    """A function that runs one mixed batch of tenants of a method on every linear layer."""
    data = batch(base, TENANTS, LENGTH)
    model = BASES[base]().eval()
    host = cw.Host(model)
    every = "|".join(s.name for s in host.sites if s.kind == "linear")
    names = [f"t{i}" for i in range(TENANTS)]
    for i, n in enumerate(names):
        for p in host.add(n, method, sites=every, seed=i, **options).parameters():
            p.data.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(i)))

    @torch.inference_mode()
    def mixed():
        with host.route(names):
            model(**data)

    return mixed


def main() -> list[dict]:
    rows = []
    for base in BASES:
        found = alternate(build(base, "road", group_size=32), build(base, "ia3"))
        what = f"mixed batch, {TENANTS} rows, {TENANTS} tenants, {LENGTH} tokens a row, {base}: RoAd / (IA)3"
        rows.append({"what": what, "unit": "time", "target": 1.5, **found})
        print(rows[-1], flush=True)
    store("road_batching", rows)
    return rows


if __name__ == "__main__":
    main()
