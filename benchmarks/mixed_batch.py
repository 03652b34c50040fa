"""One mixed batch: 32 rows, 32 different LoRA tenants of rank 8.

Against PEFT's `adapter_names`, and against running one tenant after another on this library. One token a row is
decoding: eight steps of the same batch; eight and 32 tokens are one pass over new rows.

    python -m benchmarks.mixed_batch
"""

from __future__ import annotations

import torch

import commonweight as cw

from .harness import alternate, store
from .shapes import BASES, TARGETS, batch

TENANTS = 32
SHAPES = ((1, 8), (8, 1), (32, 1))  # tokens a row, passes


def build(base: str, length: int, passes: int):
    from peft import LoraConfig, get_peft_model

    data = batch(base, TENANTS, length)
    names = [f"t{i}" for i in range(TENANTS)]
    model = BASES[base]().eval()
    host = cw.Host(model)
    for i, n in enumerate(names):
        tenant = host.add(n, "lora", rank=8, seed=i)
        for p in tenant.parameters():
            p.data.normal_(std=0.02)
    targets = r"encoder\..*(query|key|value|dense)" if base == "minilm" else TARGETS[base]
    theirs = get_peft_model(BASES[base](), LoraConfig(r=8, target_modules=targets), adapter_name="t0").eval()
    for n in names[1:]:
        theirs.add_adapter(n, LoraConfig(r=8, target_modules=targets))

    @torch.inference_mode()
    def mixed():
        with host.route(names):
            for _ in range(passes):
                model(**data)

    @torch.inference_mode()
    def peft():
        for _ in range(passes):
            theirs(**data, adapter_names=names)

    @torch.inference_mode()
    def one_by_one():
        for i, n in enumerate(names):
            with host.route(n):
                for _ in range(passes):
                    model(**{k: v[i : i + 1] for k, v in data.items()})

    @torch.inference_mode()
    def plain():
        for _ in range(passes):
            model(**data)

    return mixed, peft, one_by_one, plain


def main() -> list[dict]:
    rows = []
    for base in BASES:
        for length, passes in SHAPES:
            mixed, peft, one_by_one, plain = build(base, length, passes)
            kind = f"{passes} decoding steps" if passes > 1 else f"{length} tokens a row"
            what = f"mixed batch, 32 rows, 32 tenants, {kind}, {base}"
            for name, other, target in (("PEFT adapter_names", peft, 3.0), ("one after another", one_by_one, None)):
                timed = alternate(other, mixed, 11, warm=1)
                timed["ours_ms"], timed["theirs_ms"] = timed["theirs_ms"], timed["ours_ms"]
                rows.append({"what": f"{what}: {name} / ours", "unit": "times faster", "target": target, **timed})
            timed = alternate(mixed, plain, 11, warm=1)
            rows.append({"what": f"{what}: ours / the plain base", "unit": "time", "target": None, **timed})
            del mixed, peft, one_by_one, plain
    store("mixed_batch", rows)
    return rows


if __name__ == "__main__":
    for row in main():
        print(row)
