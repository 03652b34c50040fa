"""An hour and more of everything at once on one server, in one process.

    python -m benchmarks.soak --requests 100000 [--seed N]

Prints how far it is, and writes benchmarks/results/soak.json. Exit code 1, with the steps that led there, as soon as an
answer is not its tenant's, a word of another tenant comes, or the server fails.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
import warnings
from pathlib import Path

from .run import Sample, soak
from .shop import METHODS, Shop

RESULT = Path(__file__).parent.parent / "results" / "soak.json"


def told(s: Sample) -> None:
    print(f"{s.seconds:7.0f} s  {s.requests:7d} requests  {s.rss / 2**20:6.1f} MiB", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULT)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        shop = Shop(Path(folder), list(METHODS), 3)
        print(f"{time.monotonic() - start:.0f} s: {len(shop.names)} tenants of {shop.versions} versions", flush=True)
        found = soak(shop, Path(folder), asked.requests, asked.seed, told)
    asked.out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in found.items() if k != "memory"}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
