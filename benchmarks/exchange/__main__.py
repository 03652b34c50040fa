"""The command line of `benchmarks.exchange`."""

from __future__ import annotations

import argparse
import importlib
import os
import warnings

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange")
    parser.add_argument("part", choices=["proof"])
    parser.add_argument("--minutes", type=float, default=60, help="proof: no run is begun after so long")
    parser.add_argument("--only", default="", help="proof: runs whose name has this in it")
    given = parser.parse_args()
    if given.part == "proof":
        importlib.import_module("benchmarks.exchange.proof").main(given.minutes, given.only)
