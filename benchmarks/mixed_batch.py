"""Forward of one mixed batch: 32 rows, 32 different LoRA tenants of rank 8.

Against PEFT's `adapter_names`, and against running one tenant after another on this library.

    python -m benchmarks.mixed_batch
"""

from __future__ import annotations

import torch

import commonweight as cw

from .harness import alternate, store
from .shapes import BASES, TARGETS, batch

TENANTS = 32


def build(base: str, length: int):
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
            return model(**data)

    @torch.inference_mode()
    def peft():
        return theirs(**data, adapter_names=names)

    @torch.inference_mode()
    def one_by_one():
        for i, n in enumerate(names):
            with host.route(n):
                model(**{k: v[i : i + 1] for k, v in data.items()})

    @torch.inference_mode()
    def plain():
        return model(**data)

    return mixed, peft, one_by_one, plain


def main() -> list[dict]:
    rows = []
    for base in BASES:
        for length in (1, 8, 32):
            mixed, peft, one_by_one, plain = build(base, length)
            what = f"mixed batch, 32 rows of {length}, 32 tenants, {base}"
            for name, other, target in (("PEFT adapter_names", peft, 3.0), ("one after another", one_by_one, None)):
                timed = alternate(other, mixed, 11)
                timed["ours_ms"], timed["theirs_ms"] = timed["theirs_ms"], timed["ours_ms"]
                rows.append({"what": f"{what}: {name} / ours", "unit": "times faster", "target": target, **timed})
            timed = alternate(mixed, plain, 11)
            rows.append({"what": f"{what}: ours / the plain base", "unit": "time", "target": None, **timed})
    store("mixed_batch", rows)
    return rows


if __name__ == "__main__":
    for row in main():
        print(row)
