"""The page of claims: what each method's paper says, what is measured here, and whether it holds.

Claims stand in claims.json; every figure is computed from plans or read from the results of benchmarks, none is written
by hand, and the verdict follows from the figure and the claim's bound.

    python docs/gen_claims.py --write    # what `make claims` runs
    python docs/gen_claims.py --check    # exit code 1 when it is not current
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import generated

import commonweight as cw
from commonweight.core import Plan, Site

ROOT = Path(__file__).parents[1]
PAGE, CLAIMS = ROOT / "docs" / "claims.md", ROOT / "docs" / "claims.json"
BENCHMARKS = ROOT / "benchmarks" / "results"
RESULTS = ROOT / "docs" / "results"
ALL = "mean of tasks"

HOLDS, FAILS, OPEN = "**holds**", "**does not hold**", "open: the bound lies inside the spread"
MORE = "open: it has more bytes"
CANNOT, NOT_YET = "cannot be tested here", "not measured yet"

INTRODUCTION = """\
# Claims

Each row has a claim of a method's paper, a test of it that runs on a small machine, and what we measured. A verdict is
about our test, not about the paper's own experiment. `make claims` writes this page.

- Parameters are counted from our plans on the shapes of the paper's models.
- Accuracies come from `make compare` (`docs/results/compare`) and `make bench` (`benchmarks/results`). Their encoder
  has 23 M parameters. Methods without a site in it stand on other small models, by `python -m benchmarks.elsewhere`.
- A name in brackets is that of a paper whose method is an option or an optimizer here (`python -m benchmarks.forms`).
- Methods marked "stream" learn tasks one after another; their figures come of `python -m benchmarks.streams` and
  `python -m benchmarks.stream_bytes`.
- Brackets hold the spread: 95 % over seeds, or the range of the seeds. If the bound lies inside the spread, the claim
  is open."""


class Verdict(NamedTuple):
    figure: str
    verdict: str


# -- shapes -----------------------------------------------------------------------------------------------------------


def layer(i: int, linear: Mapping[str, tuple[int, int]], d: int, part: str = "layers") -> list[Site]:
    """The linear layers (role -> (out, inp)), two norms and the block of one layer."""
    name = f"{part}.{i}"
    return [
        *(Site(f"{name}.{role}", out, inp, "linear", role) for role, (out, inp) in linear.items()),
        *(Site(f"{name}.norm{n}", d, 1, "norm") for n in (1, 2)),
        Site(name, d, d, "block", "", False),
    ]


def llama(layers: int, d: int, kv: int, ff: int) -> list[Site]:
    linear = {"query": (d, d), "key": (kv, d), "value": (kv, d), "attn_out": (d, d), "gate": (ff, d), "up": (ff, d),
              "down": (d, ff)}  # fmt: skip
    return [s for i in range(layers) for s in layer(i, linear, d)]


def bert(layers: int, d: int, part: str = "layers") -> list[Site]:
    attention = {role: (d, d) for role in ("query", "key", "value", "attn_out")}
    return [s for i in range(layers) for s in layer(i, {**attention, "up": (4 * d, d), "down": (d, 4 * d)}, d, part)]


def bart(layers: int, d: int) -> list[Site]:
    """An encoder and a decoder, whose layers have a second attention."""
    cross = [Site(f"decoder.{i}.cross.attn_out", d, d, "linear", "attn_out") for i in range(layers)]
    return [*bert(layers, d, "encoder"), *bert(layers, d, "decoder"), *cross]


# Sites, and the parameters of the whole model where a claim is a share of them.
SHAPES: dict[str, tuple[Callable[[], list[Site]], int]] = {
    "bert-base": (lambda: bert(12, 768), 110_000_000),
    "bert-large": (lambda: bert(24, 1024), 335_000_000),
    "gpt2-medium": (lambda: bert(24, 1024), 355_000_000),
    "gpt3": (lambda: bert(96, 12288), 175_000_000_000),
    "bart-base": (lambda: bart(6, 768), 139_420_416),
    "t5-base": (lambda: [*bert(12, 768, "encoder"), *bert(12, 768, "decoder")], 222_900_000),
    "llama2-7b": (lambda: llama(32, 4096, 4096, 11008), 6_738_000_000),
    "llama2-13b": (lambda: llama(40, 5120, 5120, 13824), 13_016_000_000),
    "llama3-8b": (lambda: llama(32, 4096, 1024, 14336), 8_030_000_000),
}
COUNTS: dict[str, Callable[[Plan], int]] = {
    "trained": Plan.count,
    "stored": lambda p: p.nbytes // 4,
    "own": lambda p: sum(pool.numel for pool in p.pools.values() if pool.train and pool.scope == "tenant"),
}


def count(method: str, shapes: str, options: dict[str, Any], roles: str = "", what: str = "trained") -> int:
    """Numbers of a method on a model's sites; of "all", the whole model's parameters; of "one", one."""
    sites, parameters = SHAPES[shapes]
    if method in ("all", "one"):
        return parameters if method == "all" else 1
    wanted = roles.split("|") if roles else None
    chosen = [s for s in sites() if wanted is None or s.role in wanted]
    return COUNTS[what](cw.plan(method, chosen, **options))


# -- kinds of measures ------------------------------------------------------------------------------------------------


def parameters(claim: dict[str, Any]) -> Verdict:
    m = claim["measure"]
    over = m["over"]
    ours = count(claim["method"], m["shapes"], m["options"], m["roles"], m["count"])
    theirs = count(over["method"], m["shapes"], over["options"], over["roles"], over["count"])
    ratio = ours / theirs
    times = f"{100 * ratio:.3g} %, 1/{1 / ratio:,.0f}" if ratio < 0.01 else f"{100 * ratio:.3g} %"
    figure = f"{ours:,}" if theirs == 1 else f"{ours:,} / {theirs:,} = {times}"
    return Verdict(figure, HOLDS if ratio <= m["at_most"] else FAILS)


def pools(claim: dict[str, Any]) -> Verdict:
    m = claim["measure"]
    sites, _ = SHAPES[m["shapes"]]
    linear = [s for s in sites() if s.kind == "linear"]
    n = sum(p.train for p in cw.plan(claim["method"], linear).pools.values())
    return Verdict(f"{n}", HOLDS if n <= m["at_most"] else FAILS)


def quality(claim: dict[str, Any]) -> Verdict:
    """The method's largest config against the reference's: a difference in points. Where ours has more bytes, by a
    tenth, since it fits no budget, they may be what makes it better. times: ours trains so many times fewer numbers,
    whatever its bytes."""
    pair = _pair(claim)
    if isinstance(pair, Verdict):
        return pair
    by = "parameters" if "times" in claim["measure"] else "bytes"
    more = pair[0][by] / max(1, pair[1][by])
    ours, theirs = (p["values"][ALL] for p in pair)
    low, mean, high = _interval([100 * (a - b) for a, b in zip(ours["seeds"], theirs["seeds"])])
    figure = f"{100 * ours['mean']:.1f} against {100 * theirs['mean']:.1f}: {mean:+.2f} ({low:+.2f} to {high:+.2f})"
    verdict = _judge(low, high, claim["measure"])
    if by == "parameters":
        return Verdict(f"{figure}, 1/{1 / more:.1f} of the trained numbers", verdict)
    if more > 1.1 and pair[1][by]:  # of the head alone, which has none, they are the point
        return Verdict(f"{figure}, with {more:.1f} times the bytes", verdict if verdict == FAILS else MORE)
    return Verdict(figure, verdict)


def share(claim: dict[str, Any]) -> Verdict:
    pair = _pair(claim)
    if isinstance(pair, Verdict):
        return pair
    ours, theirs = (p["values"][ALL] for p in pair)
    low, mean, high = _interval([a / b for a, b in zip(ours["seeds"], theirs["seeds"])])
    return Verdict(f"{mean:.3f} ({low:.3f} to {high:.3f})", _judge(low, high, claim["measure"]))


def cost(claim: dict[str, Any]) -> Verdict:
    """What training takes, memory or time, over what it takes by another method in the same comparison."""
    pair = _pair(claim)
    if isinstance(pair, Verdict):
        return pair
    m = claim["measure"]
    ours, theirs = (p[m["field"]] for p in pair)
    return Verdict(f"{ours / theirs:.2f}", HOLDS if ours <= m["at_most"] * theirs else FAILS)


def benchmark(claim: dict[str, Any]) -> Verdict:
    m = claim["measure"]
    found = _read(BENCHMARKS / f"{m['file']}.json")
    row = next((r for r in (found or {"rows": []})["rows"] if m["row"] in r["what"]), None)
    if row is None:
        return Verdict("-", NOT_YET)
    low, high = row["spread"]
    sign = "+" if "at_least" in m else ""  # a difference in points; else a ratio
    if row.get("seeds") == 1:
        return Verdict(f"{row[m['field']]:{sign}g} (one seed)", "open: one seed")
    return Verdict(f"{row[m['field']]:{sign}g} ({low:{sign}g} to {high:{sign}g})", _judge(low, high, m))


def tenants(claim: dict[str, Any]) -> Verdict:
    m = claim["measure"]
    found = _read(RESULTS / "ten_thousand.json")
    row = next((r for r in (found or {"rows": []})["rows"] if r["label"].split()[0] == m["find"]), None)
    if row is None:
        return Verdict("-", NOT_YET)
    return Verdict(f"1/{1 / row['ratio']:,.0f}", HOLDS if row["ratio"] <= m["at_most"] else FAILS)


def stream(claim: dict[str, Any]) -> Verdict:
    """A figure of a stream of tasks minus that of another method's, in points: mean and range of the orders that both
    were run in. One or two orders decide nothing."""
    m = claim["measure"]
    first, more = (_read(RESULTS / f"{n}.json") or {} for n in ("streams", "streams_orders"))
    runs = [{"0": first[n], **more.get(n, {})} if n in first else {} for n in (claim["method"], m["against"])]
    orders = sorted(runs[0].keys() & runs[1].keys())
    if not orders:
        return Verdict("-", NOT_YET)
    each = [100 * (runs[0][o][m["field"]] - runs[1][o][m["field"]]) for o in orders]
    if len(each) == 1:
        return Verdict(f"{each[0]:+.1f} (one order)", "open: one order")
    figure = f"{sum(each) / len(each):+.1f} ({min(each):+.1f} to {max(each):+.1f}, {len(each)} orders)"
    if len(each) == 2:
        return Verdict(figure, "open: two orders")
    return Verdict(figure, _judge(min(each), max(each), m))


def stored(claim: dict[str, Any]) -> Verdict:
    """Bytes of a store after twenty tasks over those of a LoRA r16 tenant for each, at no more than a point less."""
    found = _read(RESULTS / "stream_bytes.json") or {}
    if not {claim["method"], "separate"} <= found.keys():
        return Verdict("-", NOT_YET)
    ours, theirs = found[claim["method"]], found["separate"]
    ratio, apart = ours["bytes"][-1] / theirs["bytes"][-1], 100 * (ours["average"] - theirs["average"])
    holds = ratio <= claim["measure"]["at_most"] and apart >= -1.0
    return Verdict(f"1/{1 / ratio:.1f}, {apart:+.1f} points", HOLDS if holds else FAILS)


def none(claim: dict[str, Any]) -> Verdict:
    return Verdict("-", f"{CANNOT}: {claim['measure']['why']}")


KINDS: dict[str, Callable[[dict[str, Any]], Verdict]] = {
    f.__name__: f for f in (parameters, pools, quality, share, cost, benchmark, tenants, stream, stored, none)
}


def _pair(claim: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]] | Verdict:
    """The values of both sides of the comparison, or why there are none. in: of a comparison on another model. A form's
    side is looked up by the name of the form."""
    found, m = _read(RESULTS / "compare" / "results.json"), claim["measure"]
    if (part := m.get("in")) is not None:
        found = (_read(RESULTS / "compare" / "elsewhere.json") or {}).get(part)
    if found is None:
        return Verdict("-", NOT_YET)
    name, other = claim.get("form", claim["method"]), m["against"]
    rows = {n: _rows(found, n) for n in (name, other)}
    best: dict[str, Any] = {n: _best(points) for n, points in rows.items()}
    if (times := m.get("times")) is not None and (theirs := best[other]) is not None:
        best[name] = _best([p for p in rows[name] if times * p["parameters"] <= theirs["parameters"]])
    small = [x for x in found.get("misfits", ()) if x["method"] in (name, other)]
    for n, p in best.items():
        if p is None:
            why = f": `{n}` has no config within the budgets" if any(x["method"] == n for x in small) else ""
            return Verdict("-", NOT_YET + why)
    return best[name], best[other]


def _rows(found: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """The configs of a method in a comparison, else those of an earlier one; of a form by its own name, its own."""
    forms = _read(RESULTS / "compare" / "forms.json") or {}
    if name in forms:
        return [p for p in forms[name]["points"] if p["method"] == forms[name]["method"]]
    now = [p for p in found["points"] if p["method"] == name]
    return now or [e for e in found.get("earlier", ()) if e["method"] == name]


def _best(points: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The config with the most bytes that has a mean: none is chosen by its test score."""
    return max((p for p in points if ALL in p["values"]), key=lambda p: p["bytes"], default=None)


def _interval(values: list[float]) -> tuple[float, float, float]:
    from commonweight.report import mean_interval

    mean, half = mean_interval(values)
    half = half or 0.0
    return mean - half, mean, mean + half


def _judge(low: float, high: float, m: Mapping[str, Any]) -> str:
    if "at_least" in m:
        return HOLDS if low >= m["at_least"] else FAILS if high < m["at_least"] else OPEN
    return HOLDS if high <= m["at_most"] else FAILS if low > m["at_most"] else OPEN


def _read(path: Path) -> Any:
    return json.loads(path.read_text("utf-8")) if path.is_file() else None


# -- the page ---------------------------------------------------------------------------------------------------------


def claims() -> list[dict[str, Any]]:
    """Raises: KeyError for a claim of an unknown kind; CommonweightError for one of an unknown method."""
    return json.loads(CLAIMS.read_text("utf-8"))


def of(claim: Mapping[str, Any]) -> str:
    """The registry of its method."""
    return "lifelong" if claim["measure"]["kind"] in ("stream", "stored") else "methods"


def page() -> str:
    rows = ["| method | the paper | here | measured | verdict |", "| --- | --- | --- | ---: | --- |"]
    for c in claims():
        if of(c) == "lifelong":
            cw.lifelong.get(c["method"])
        else:
            cw.methods.either(c["method"])
        found = KINDS[c["measure"]["kind"]](c)
        bound = _bound(c["measure"])
        name = f"`{c['method']}`" + " (stream)" * (of(c) == "lifelong") + (f" ({c['form']})" if "form" in c else "")
        cells = (name, c["claim"], c["here"] + (f" ({bound})" if bound else "") or "-", *found)
        rows.append("| " + " | ".join(cells) + " |")
    return INTRODUCTION + "\n\n" + "\n".join(rows) + "\n"


def _bound(m: Mapping[str, Any]) -> str:
    if "at_least" in m:
        return f"holds from {m['at_least']:+g}" if m["kind"] != "share" else f"holds from {m['at_least']:g}"
    if "at_most" not in m:
        return ""
    if m["kind"] == "parameters" and m["at_most"] <= 1:
        return f"holds up to {100 * m['at_most']:.3g} %"
    if m["kind"] == "tenants":
        return f"holds up to 1/{1 / m['at_most']:.0f}"
    return f"holds up to {m['at_most']:g}"


def pages() -> generated.Pages:
    return {PAGE: page()}


if __name__ == "__main__":
    sys.exit(generated.main(pages, sys.argv[1:], __doc__))
