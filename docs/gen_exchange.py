"""The tables of docs/exchange.md: the methods and the claims, made from the registry, and the runs, from docs/results.

python docs/gen_exchange.py --write
python docs/gen_exchange.py --check    # exit code 1 when the table is not current
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

import gen_claims
import generated

import commonweight as cw
from commonweight.exchange import Method, Setting, available
from commonweight.exchange.methods import resolve

PAGE = Path(__file__).with_name("exchange.md")
KEPT = PAGE.parent / "results" / "exchange.json"
BOOKS = PAGE.parent / "results" / "exchange_books.json"
MEASURED = PAGE.parents[1] / "benchmarks" / "results"
COMMANDS = {  # of benchmarks, by the kind of a row
    "bytes": "exchange bytes", "clients": "exchange clients", "many": "exchange many", "seeds": "exchange_seeds",
    "killed": "exchange killed",
}  # fmt: skip


def table() -> str:
    """A line for each method."""
    lines = [
        "| method | trained pools | bytes of a client and round | the server keeps | a client keeps | exact | "
        "mixed batch | privacy | codecs |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for m in available().values():
        exact, mixed, noise = "yes" if m.exact else "no", m.apart or "yes", m.noise or "yes"
        line = (f"`{m.name}`", m.trains, m.formula, m.keeps, m.each, exact, mixed, noise, carried(m))
        lines.append(f"| {' | '.join(line)} |")
    papers = [f"- `{m.name}`: {m.paper}." for m in available().values()]
    return "\n".join([*lines, "", *papers])


def carried(m: Method) -> str:
    """Whether codecs carry its messages, in words."""
    if m.coding is not None:
        return "its own options"
    return m.uncoded(m.config(), "up") or ("yes" if m.broadcast else "yes; feedback of clients alone")


def proof() -> str:
    """A line for each side of the runs that are kept, those of the target first."""
    if not KEPT.exists():
        return "Not measured yet."
    found = json.loads(KEPT.read_text(encoding="utf-8"))
    runs, tasks = found["runs"], found["tasks"]
    of = {k: k.split(" | ")[0] for k in runs}
    asked, tried = ([s for s in found[kind] if s in of.values()] for kind in ("sides", "tried"))
    most = len(found["sides"]) * len(tasks) * len(found["seeds"])
    done = sum(s in asked for s in of.values())
    head = " | ".join(tasks)
    lines = [
        f"{done} of {most} runs so far. Accuracy in percent, the mean over the seeds that were run, how many of "
        "them in brackets where there are several; bytes of one client in a whole run, with frames and setup."
        + (f" The last {len(tried)} lines are rates, ranks and batches that were tried on the way." if tried else ""),
        "",
        f"| method | numbers | bytes up | bytes down | {head} |",
        "| --- | ---: | ---: | ---: |" + " ---: |" * len(tasks),
    ]
    for side in [*asked, *tried]:
        mine = {k: r for k, r in runs.items() if k.startswith(f"{side} | ")}
        some = next(iter(mine.values()))
        sent = [statistics.mean(r[k] for r in mine.values()) if k in some else None for k in ("numbers", "up", "down")]
        scores = []
        for task in tasks:
            each = [r["accuracy"] for k, r in mine.items() if k.split(" | ")[1] == task]
            many = f" ({len(each)})" if len(each) > 1 else ""
            scores.append(f"{statistics.mean(each):.1f}{many}" if each else "")
        told = ["" if v is None else f"{v:,.0f}" for v in sent]
        lines.append(f"| {side} | {' | '.join(told)} | {' | '.join(scores)} |")
    machine = found["machine"]
    return "\n".join([*lines, "", f"{machine['cpu']}, torch {machine['torch']}, {machine['date']}."])


def books() -> str:
    """A line for each side of the language model of books."""
    if not BOOKS.exists():
        return "Not measured yet."
    found = json.loads(BOOKS.read_text(encoding="utf-8"))
    seeds = sorted({k.split(" | ")[1] for k in found["runs"]})
    size, machine = found["size"], found["machine"]
    half = found["steps"] // 2
    lines = [
        f"{', '.join(found['authors'])}; a Llama of {size['num_hidden_layers']} layers, "
        f"{size['hidden_size']} wide, from random weights; {found['steps']} steps, {found['tokens']:,} tokens for each "
        f"side; seed {', '.join(seeds)}. Loss in nats a token on the end of each author's text.",
        "",
        f"| side | loss at step {half} | loss at the end | bytes up | bytes down | of synchronous |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    mean = {s: [r for k, r in found["runs"].items() if k.startswith(f"{s} | ")] for s in found["sides"]}
    all_bytes = {s: statistics.mean(r["up"] + r["down"] for r in each) for s, each in mean.items() if each}
    for side, each in mean.items():
        if not each:
            continue
        at = [dict(r["curve"]).get(half) for r in each]
        middle = f"{statistics.mean(at):.3f}" if None not in at else ""
        up, down = (statistics.mean(r[k] for r in each) for k in ("up", "down"))
        share = all_bytes["synchronous"] / all_bytes[side] if "synchronous" in all_bytes else 1
        told = "1" if side == "synchronous" else f"1/{share:,.0f}"
        end = statistics.mean(r["loss"] for r in each)
        lines.append(f"| {side} | {middle} | {end:.3f} | {up:,.0f} | {down:,.0f} | {told} |")
    return "\n".join([*lines, "", f"{machine['cpu']}, torch {machine['torch']}, {machine['date']}."])


def measured() -> str:
    """A line for each row of the benchmarks of exchange: bytes, clients, memory, random numbers, killed clients."""
    found = [r for name in ("exchange", "exchange_seeds") for r in _rows(name)]
    lines = [
        "| what | measured | range | both sides | target | met | on |",
        "| --- | ---: | --- | --- | --- | --- | --- |",
    ]
    for kind in COMMANDS:
        for r in (r for r in found if r["kind"].partition(",")[0] == kind):
            told = (r["what"], *figures(r), f"{when(r)}, `{COMMANDS[kind]}`")
            lines.append(f"| {' | '.join(told)} |")
    return "\n".join(lines)


def _rows(name: str) -> list[dict[str, Any]]:
    path = MEASURED / f"{name}.json"
    told = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"rows": []}
    return [{"kind": "seeds", "machine": told["machine"], **r} for r in told["rows"]]


def figures(r: dict[str, Any]) -> tuple[str, str, str, str, str]:
    """(measured, range, both sides, target, met) of a row."""
    if r["kind"] == "killed":
        asked, lost = r["rounds"] * r["clients"], sum(r["lost"].values())
        end = f"{r['kills']} kills: {r['replies']} answers and {lost} counted as lost, of {asked}"
        return end, "", f"{r['seconds']:,} s", "it ends, every loss counted", _met(r["replies"] + lost == asked)
    ratio, target = r["ratio"], r["target"]
    low, high = r["spread"]
    most = r["unit"] == "memory" or r["kind"] == "bytes"
    good = (ratio <= target if most else ratio >= target) and r.get("within", True)
    if r["kind"] == "bytes":
        both = " / ".join(f"{v:,} bytes" for v in r["bytes"].values())
        return (
            f"1/{1 / ratio:.0f}",
            f"1/{1 / high:.0f} to 1/{1 / low:.0f}",
            both,
            f"at most 1/{1 / target:.0f}",
            _met(good),
        )
    both = _both(r)
    return f"{ratio:g}", f"{low:g} to {high:g}", both, f"at {'most' if most else 'least'} {target:g}", _met(good)


def _both(r: dict[str, Any]) -> str:
    for key, unit in (("per_s", "a second"), ("millions", "million a second")):
        if f"ours_{key}" in r:
            return f"{r[f'ours_{key}']:g} / {r[f'theirs_{key}']:g} {unit}"
    return f"{r['ours_mb']['peak_mb']:g} / {r['theirs_mb']['peak_mb']:g} MB"


def _met(good: bool) -> str:
    return "yes" if good else "no"


def when(r: dict[str, Any]) -> str:
    """Date, revision, and what else the machine did."""
    m = r["machine"]
    busy = r.get("beside") or (f"load {m['load']:g} on {m['cores']} cores" if "load" in m else "")
    return ", ".join(filter(None, (m["date"], m.get("revision", ""), busy)))


def sent(name: str, rounds: int = 1, **options: Any) -> tuple[float, float]:
    """Bytes up and down of a client and round, the mean of so many rounds, on MiniLM's layers without a head."""
    found, config = resolve(name, options)
    adapter, how = found.adapter(config)
    plan = cw.plan(adapter, gen_claims.bert(6, 384), **how)
    setting = Setting(name, config, plan, tuple(n for n, p in plan.pools.items() if p.train), rounds=rounds, clients=16)
    each = [found.nbytes(setting, r, 0) for r in range(rounds)]
    return statistics.mean(u for u, _ in each), statistics.mean(d for _, d in each)


def claims() -> str:
    """What papers say of bytes, beside what messages of this library take: counted, without any training."""
    kseed, byte = sum(sent("fedkseed")), sent("one-byte", directions=1)[0]
    lora, parts = sum(sent("fedavg", rank=16)), 3
    streamed = sent("diloco", rounds=6 * parts, rank=16, steps=30, fragments=parts, bits=4)[0] * parts
    fewer = 30 * sent("fedavg", rank=16)[0] / streamed  # than a whole float32 gradient at each of the 30 steps
    rows = [
        ("`fedkseed`", "under 18 kB for a client and round", f"{kseed:,.0f} bytes both ways, any model", kseed < 18e3),
        ("`one-byte`", "a byte for a gradient", f"{byte:.0f} for a direction of a batch", byte == 1),
        (
            "`diloco`", "two orders of magnitude below synchronous steps",
            f"4 bits, {parts} fragments, each sent every 30 steps: 1/{fewer:,.0f} of float32 gradients", fewer >= 100,
        ),
    ]  # fmt: skip
    for r in (4, 8, 16):
        times = lora / sum(sent("fed-sb", rank=r))
        rows.append(("`fed-sb`", "230 times less than LoRA", f"rank {r}, of LoRA r16: 1/{times:,.0f}", times >= 230))
    lines = ["| method | the paper | here | of bytes alone |", "| --- | --- | --- | --- |"]
    lines += [f"| {m} | {claim} | {here} | {'holds' if good else 'does not hold'} |" for m, claim, here, good in rows]
    return "\n".join(lines)


def pages() -> generated.Pages:
    return generated.parts(
        PAGE, {"exchange": table, "proof": proof, "measured": measured, "books": books, "claims": claims}
    )


if __name__ == "__main__":
    sys.exit(generated.main(pages, sys.argv[1:], __doc__))
