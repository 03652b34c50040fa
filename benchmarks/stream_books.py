"""Books by author as a stream for language modelling: what each lifelong method forgets of an author who went before.

A small Llama first reads five authors whom no task has; then four others come one after another. Texts of another
folder, or a model of another, are named: author_title.txt.

    python -m benchmarks.stream_books --books FOLDER              # those that docs/results/stream_books.json lacks
    python -m benchmarks.stream_books --books FOLDER ewc replay   # these anew
    python -m benchmarks.stream_books --books FOLDER --model DIR  # another base; nothing is kept, the figures are shown
    python -m benchmarks.stream_books --table
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commonweight import lifelong
from commonweight.adapt import Data, adapt, evaluate, open_host
from commonweight.host import Host

from .exchange import books
from .streams import RESULTS, loaded, save

ORDER = ("shakespeare", "austen", "melville", "dickens")
LENGTH, TRAIN, TEST = 64, 150, 8  # tokens of a piece; pieces of 1,500 characters of each author, and of its end
BASE: dict[str, Any] = {"epochs": 1, "batch_size": 32, "lr": 3e-3, "max_length": LENGTH, "seed": 0}
RECIPE: dict[str, Any] = {"epochs": 1, "batch_size": 16, "lr": 5e-3, "max_length": LENGTH, "seed": 0}
SIDES: dict[str, dict[str, Any]] = {
    "joint": {"rank": 8}, "separate": {"rank": 8}, "sequential": {"rank": 8}, "replay": {"rank": 8, "rows": 16},
    "ewc": {"rank": 8, "rows": 64}, "o-lora": {"rank": 8}, "share": {"k": 8, "rank": 8},
}  # fmt: skip
FILE = RESULTS / "stream_books.json"
Texts = Mapping[str, str]


def texts(folder: Path) -> tuple[Texts, Texts]:
    """(the authors of the tasks in their order, all others together by file). Raises: SystemExit."""
    files = sorted(folder.glob("*_*.txt"))
    mine = {a: "\n".join(p.read_text("utf-8") for p in files if p.name.startswith(f"{a}_")) for a in ORDER}
    if lacks := [a for a, t in mine.items() if not t]:
        raise SystemExit(f"books: {folder} has no text of {', '.join(lacks)}; wanted files named author_title.txt")
    return mine, {p.stem: p.read_text("utf-8") for p in files if p.name.partition("_")[0] not in ORDER}


def base(folder: Path, others: Texts, all_: Texts) -> Host:
    """A Llama that has read the other authors once."""
    at = books.base(folder / "random", {**all_}, seed=0, size=books.SIZE | {"num_hidden_layers": 4})
    host = open_host(at, "lm", dtype="float32")
    rows = [{"text": r["text"]} for r in books.rows({**others}, held=False)]
    result = adapt(host, "base", rows, task="lm", method="full", sites=books.SITES, **BASE)
    print(f"base: {len(rows)} pieces, loss {result.curve[-1]['loss']:.3f}", flush=True)
    host.merged_model("base").save_pretrained(folder / "read")
    books.tokenizer(at).save_pretrained(folder / "read")
    return open_host(folder / "read", "lm", dtype="float32")


def run(method: str, host: Host, mine: Texts, options: dict[str, Any]) -> dict[str, Any]:
    """A stream's figures, in a store that is thrown away; scores are losses in nats a token."""
    rows = {a: [*books.rows({a: t}, held=False)] for a, t in mine.items()}
    evals = {a: [{"text": r["text"]} for r in books.rows({a: t}, held=True)][:TEST] for a, t in mine.items()}
    tasks = {a: Data(rows=[{"text": r["text"]} for r in found[:: len(found) // TRAIN][:TRAIN]])
             for a, found in rows.items()}  # fmt: skip
    before = {a: evaluate(host, None, e, "lm", max_length=LENGTH)["loss"] for a, e in evals.items()}
    with tempfile.TemporaryDirectory() as folder:
        made = lifelong.learn(
            host, tasks, Path(folder) / "shop", method=method, options=options, task="lm", evals=evals, say=print,
            **RECIPE,
        )  # fmt: skip
    stages = made.record["stages"]
    return {
        "scores": made.scores, "base": before, **made.summary, "options": options,
        "seconds": round(sum(s["seconds"] for s in stages), 1), "steps": [s["steps"] for s in stages],
        "bytes": [s["bytes"]["all"] for s in stages], "carried": [s["bytes"]["carried"] for s in stages],
    }  # fmt: skip


def table(found: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each method, the least loss first; what the base alone has is the last."""
    lines = [
        "# Books by author, a stream for language modelling", "",
        f"{', '.join(ORDER)}, one after another: {TRAIN} pieces of 1,500 characters each, in rows of {LENGTH} tokens, "
        f"one epoch in batches of {RECIPE['batch_size']} at the rate {RECIPE['lr']}. The model is a Llama of four "
        "layers of 128, with a vocabulary of 512, that has read five other authors before (all its weights but the "
        "embeddings). "
        f"Loss in nats a token on {TEST} pieces of each author's last twentieth, after the last task, the author told; "
        "one order, one seed. Forgetting is what the loss rose since an author was learned; backward and forward "
        "transfer are gains. Bytes are those of the store at the end. `python -m benchmarks.stream_books --books "
        "FOLDER` makes it; [Streams of tasks](../streams.md) says what the figures are.", "",
        f"| method | {' | '.join(ORDER)} | average | forgetting | backward | forward | bytes | carried |",
        f"| --- |{' ---: |' * (len(ORDER) + 6)}",
    ]  # fmt: skip
    for m in sorted(found, key=lambda m: found[m]["average"]):
        r = found[m]
        cells = [*r["scores"][-1], r["average"], r["forgetting"], r["backward_transfer"], r["forward_transfer"]]
        told = ["-" if v is None else f"{v:.3f}" for v in cells]
        lines.append(f"| `{m}` | {' | '.join(told)} | {r['bytes'][-1]:,} | {r['carried'][-1]:,} |")
    if found:
        each = [next(iter(found.values()))["base"][a] for a in ORDER]
        told = [f"{v:.3f}" for v in (*each, statistics.mean(each))]
        lines.append(f"| the base alone | {' | '.join(told)} |{' - |' * 5}")
    return "\n".join([*lines, ""])


def main(args: list[str] | None = None) -> None:
    ask = argparse.ArgumentParser(prog="python -m benchmarks.stream_books")
    ask.add_argument("methods", nargs="*")
    ask.add_argument("--books", type=Path)
    ask.add_argument("--model", type=Path)
    ask.add_argument("--table", action="store_true")
    asked = ask.parse_args(args)
    found = loaded(FILE)
    if not asked.table:
        if asked.books is None:
            ask.error("--books FOLDER: of texts named author_title.txt")
        mine, others = texts(asked.books)
        wanted = asked.methods or [m for m in SIDES if m not in found]
        with tempfile.TemporaryDirectory() as folder:
            host = open_host(asked.model, "lm") if asked.model else base(Path(folder), others, {**mine, **others})
            for method in wanted:
                print(method, flush=True)
                found[method] = run(method, host, mine, SIDES[method])
                if asked.model is None:
                    save(FILE, found)
        if asked.model is not None:
            print(table({m: found[m] for m in wanted}))
            return
    FILE.with_suffix(".md").write_text(table(found), encoding="utf-8")


if __name__ == "__main__":
    main()
