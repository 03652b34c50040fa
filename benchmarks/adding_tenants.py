"""Adding the 16th and the 256th LoRA tenant to one base: ours against PEFT's add_adapter.

python -m benchmarks.adding_tenants
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import commonweight as cw

from .harness import store
from .shapes import BASES, TARGETS

AT = (16, 64, 256)


def ours(base: str) -> Callable[[int], None]:
    host = cw.Host(BASES[base]())
    return lambda i: host.add(f"t{i}", "lora", rank=8, seed=i) and None


def peft(base: str) -> Callable[[int], None]:
    from peft import LoraConfig, get_peft_model

    targets = r"encoder\..*(query|key|value|dense)" if base == "minilm" else TARGETS[base]
    model = get_peft_model(BASES[base](), LoraConfig(r=8, target_modules=targets), adapter_name="t0")
    return lambda i: model.add_adapter(f"t{i + 1}", LoraConfig(r=8, target_modules=targets))


def main() -> list[dict]:
    rows = []
    for base in BASES:
        sides = {"ours": ours(base), "peft": peft(base)}
        took: dict[str, list[float]] = {"ours": [], "peft": []}
        for i in range(AT[-1] + 4):
            for name, add in sides.items():
                start = time.perf_counter()
                add(i)
                took[name].append(1e3 * (time.perf_counter() - start))
        for n in AT:
            near = {k: v[n - 5 : n + 4] for k, v in took.items()}  # nine additions around the n-th
            ratios = sorted(b / a for a, b in zip(near["ours"], near["peft"]))
            rows.append(
                {
                    "what": f"adding tenant {n}, PEFT / ours, {base}",
                    "unit": "times faster",
                    "target": 50 if n == 256 else None,
                    "ours_ms": round(statistics.median(near["ours"]), 3),
                    "theirs_ms": round(statistics.median(near["peft"]), 3),
                    "ratio": round(ratios[4], 1),
                    "spread": [round(ratios[2], 1), round(ratios[6], 1)],
                    "rounds": 9,
                }
            )
    store("adding_tenants", rows)
    return rows


if __name__ == "__main__":
    for row in main():
        print(row)
