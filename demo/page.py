"""The page: picture, table, mixed batch, and what was run."""

from __future__ import annotations

from typing import Any

from commonweight.report import Column, compact, facts, page, table

from .show import Results, beside, gap, means, ms, percent, picture, settings, share_of_lora, title

COLUMNS = (
    Column("tenant", lambda r: _tenant(r), lambda r: r["tenant"], number=False),
    Column("method", lambda r: _method(r), lambda r: title(r["method"]), number=False),
    Column("trainable", lambda r: f"{r['parameters']:,.0f}", lambda r: r["parameters"]),
    Column("bytes on disk", lambda r: f"{r['bytes']:,.0f}", lambda r: r["bytes"]),
    Column("accuracy %", lambda r: _accuracy(r), lambda r: r["accuracy"]),
    Column("test rows", lambda r: f"{r['rows']:,}", lambda r: r["rows"]),
    Column("seconds", lambda r: f"{r['seconds']:.1f}", lambda r: r["seconds"]),
)


def _tenant(r: dict[str, Any]) -> str:
    return r["tenant"] if "error" in r else f"<code>{r['tenant']}</code>"


def _method(r: dict[str, Any]) -> str:
    told = r["settings"] if "settings" in r else settings(r)
    return f"{title(r['method'])} <small>{told}</small>"


def _accuracy(r: dict[str, Any]) -> str:
    half = r["error"] if "error" in r else (r["high"] - r["low"]) / 2
    return f"{percent(r['accuracy'])} <small>± {percent(half)}</small>"


def report(results: Results) -> str:
    found = {r["method"]: r for r in means(results)}
    tenants, base, host = results["tenants"], results["base"], results["machine"]
    total = sum(t["bytes"] for t in tenants)
    tasks = list(dict.fromkeys(t["task"] for t in tenants))
    lead = (
        f"{len(tenants)} tenants on one frozen encoder of {base['parameters'] / 1e6:.1f} million parameters, "
        f"{compact(total)} of files in all."
    )
    if share_of_lora(results):
        lead += (
            f" MoS trains {share_of_lora(results)} of LoRA's parameters and reaches "
            f"{percent(found['mos']['accuracy'])} % against {percent(found['lora']['accuracy'])} % in the mean of "
            f"{len(tasks)} {'task' if len(tasks) == 1 else 'tasks'}."
        )
    late, lora = results["late"], beside(results)
    lead += (
        f" A late tenant that trains {late['own']:,} bytes of its own between frozen, common factors reaches "
        f"{percent(late['accuracy'])} % on {late['task']}; LoRA of {compact(lora['bytes'])} reaches "
        f"{percent(lora['accuracy'])} %."
    )
    foot = [{**r, "tenant": f"mean of {r['tasks']}"} for r in means(results)]
    ran = {
        "command": results["command"],
        "date": results["date"],
        "took": f"{results['seconds']:.0f} seconds, training, tests and mixed batch",
        "machine": f"{host['processor']}, {host['cores']} cores, {host['system']}; {host['processes']} "
        f"process{'es' * (host['processes'] > 1)} for training",
        "versions": ", ".join(f"{k} {v}" for k, v in results["versions"].items()),
        "base": f"{base['name']}, {base['dtype']}, {compact(base['bytes'])}, frozen, held once",
        "rows": "; ".join(
            f"{t}: {a:,} training, {b} dev, {c} test" for t, a, b, c in zip(tasks, *results["rows"].values())
        ),
        **{title(r["method"]): recipe(r, tenants) for r in means(results)},
    }
    sections = [
        ("", picture(results).svg()),
        (
            "Tenants",
            table(COLUMNS, [*tenants, late], group="task", key="tenant", foot=foot)
            + '<p class="note">± is half of the 95 % interval that so many test rows allow; below, of the mean. '
            "It does not include the choice of the seed. Trainable parameters include the head. Seconds: training and "
            "a look at the dev rows after each epoch, where the best state is kept. Click a column to sort.</p>",
        ),
        ("A tenant that comes late", late_section(results)),
        ("One batch for all tenants", mixed_section(results)),
        ("What was run", facts(ran)),
    ]
    return page("commonweight demo", lead, sections)


def recipe(mean: dict[str, Any], tenants: list[dict[str, Any]]) -> str:
    t = next(t for t in tenants if t["method"] == mean["method"])
    return f"{mean['settings']}; {t['epochs']:g} epochs at most, learning rate {t['lr']:g}"


def late_section(results: Results) -> str:
    late, lora = results["late"], beside(results)
    count = late["parameters"] - late["head"]
    told = {
        "trained in common": f"the factors of LoRA-XS, on {', '.join(late['others'])}, then frozen: "
        f"{compact(late['common'])} in memory, {late['common seconds']:.0f} seconds",
        "trained late": f"{count:,} numbers of its own and the head, {late['epochs'] or 3:g} epochs at most, learning "
        f"rate {late['lr']:g}, {late['seconds']:.0f} seconds",
        "bytes": f"{late['own']:,} of its own in {late['codec']}; {late['bytes']:,} more in the store, with head and "
        f"manifest; LoRA's file: {lora['bytes']:,} in float32",
        "accuracy": f"{percent(late['accuracy'])} % ({percent(late['low'])} to {percent(late['high'])}); LoRA "
        f"{percent(lora['accuracy'])} % ({percent(lora['low'])} to {percent(lora['high'])}); {late['rows']} test rows, "
        "one seed",
    }
    return facts(told) + (
        '<p class="note">Measured as the store gives the tenant back. Rows of the other tasks that stand among the '
        "late task's dev or test rows are left out of the common's training. All five tasks with three seeds: "
        "<code>python -m benchmarks.commons</code>.</p>"
    )


def mixed_section(results: Results) -> str:
    mixed = results["mixed"]
    dtypes = {"float32": mixed["float32"]} | ({mixed["dtype"]: mixed["own"]} if mixed["dtype"] != "float32" else {})
    checks = [{"dtype": k, **v} for k, v in dtypes.items()]
    rows, turns = mixed["rows"], results["timing"][0]["repeats"]

    def within(r: dict[str, Any]) -> str:
        return f"{r['agree']} of {rows}" if r["dtype"] == "float32" else "-"

    def same(r: dict[str, Any]) -> str:
        return f"{r['same prediction']} of {rows}"

    compared = table(
        (
            Column("computed in", lambda r: r["dtype"], lambda r: r["dtype"], number=False),
            Column("rows within 0.0001", within, lambda r: r["agree"]),
            Column(
                "same prediction",
                same,
                lambda r: r["same prediction"],
            ),
            Column("largest difference", gap, lambda r: r["largest difference"]),
            Column("largest logit", lambda r: f"{r['largest logit']:.1f}", lambda r: r["largest logit"]),
        ),
        checks,
    )
    timed = table(
        (
            Column("rows of each tenant", lambda r: str(r["rows each"]), lambda r: r["rows each"]),
            Column("rows in all", lambda r: str(r["rows"]), lambda r: r["rows"]),
            Column("one mixed batch", lambda r: ms(r["mixed"]), lambda r: r["mixed"]["median"]),
            Column("tenant after tenant", lambda r: ms(r["in turn"]), lambda r: r["in turn"]["median"]),
            Column("ratio", lambda r: f"{r['ratio']:.2f}", lambda r: r["ratio"]),
        ),
        results["timing"],
    )
    return (
        f"<p>{rows} test rows of all {mixed['tenants']} tenants, shuffled, in one batch; each row is compared "
        "with its tenant alone on the same rows. In float32 only the order of additions may differ; in "
        f"bfloat16 that order alone may move a logit in its second or third figure.</p>{compared}"
        f"<p>The same rows served as one mixed batch, and one tenant after another: median of {turns} "
        f"turns, with the range.</p>{timed}"
    )
