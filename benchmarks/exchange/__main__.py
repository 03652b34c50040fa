"""The command line of `benchmarks.exchange`."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

from . import keep

PARTS = ("proof", "bytes", "books", "clients", "many", "one", "killed")


def part(name: str) -> Any:
    return importlib.import_module(f"benchmarks.exchange.{name}")


def main(given: argparse.Namespace) -> None:
    if given.part in ("clients", "killed") and not given.flower:
        raise SystemExit(f"{given.part}: --flower names the Python of an environment with flwr[simulation] and ray")
    if given.part == "books" and given.books is None:
        raise SystemExit("books: --books names a folder of texts, author_title.txt")
    if given.part == "proof":
        part("proof").main(given.minutes, given.only)
    elif given.part == "books":
        part("books").main(given.books, given.minutes, given.only)
    elif given.part == "clients":
        print(part("clients").main(given.flower, given.clients, given.times, tuple(given.bases)))
    elif given.part == "killed":
        print(part("killed").main(given.flower, given.rounds))
    elif given.part == "many":
        print(part("many").main())
    elif given.part == "bytes":
        print([row for found in part("proof").bytes_row() for row in keep({"kind": "bytes", **found})])
    else:
        part("many").one(given.clients)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exchange")
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("--minutes", type=float, default=60, help="proof, books: no run is begun after so long (60)")
    parser.add_argument("--only", default="", help="proof, books: runs whose name has this in it")
    parser.add_argument("--flower", default="", help="clients, killed: the Python of an environment with flwr and ray")
    parser.add_argument("--books", type=Path, help="books: a folder of texts named author_title.txt")
    parser.add_argument("--clients", type=int, default=1000, help="clients: how many (1000)")
    parser.add_argument("--bases", nargs="+", default=["small", "minilm"], help="clients: of these")
    parser.add_argument("--times", type=int, default=2, help="clients: runs of each side (2)")
    parser.add_argument("--rounds", type=int, default=30, help="killed: rounds (30)")
    sys.exit(main(parser.parse_args()))
