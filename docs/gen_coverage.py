"""The tables in docs/coverage.md: what answers each method of the field, made from docs/coverage.json.

python docs/gen_coverage.py --write
python docs/gen_coverage.py --check    # exit code 1 when the tables are not current

A line of the data has `by` (what answers it), `missing` (it is not there yet, and what would be needed) or `study` (a
paper without a mechanism). What is not in a registry cannot be named: it raises.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import marked

from commonweight import exchange, lifelong, merge, methods, share
from commonweight.core import build

PAGE, DATA = Path(__file__).with_name("coverage.md"), Path(__file__).with_name("coverage.json")

REGISTRIES = {
    "method": methods,
    "method over tenants": methods.OVER,
    "merge": merge,
    "share": share,
    "exchange": exchange,
    "lifelong": lifelong,
}
PAGES = {
    "method": "methods.md",
    "method over tenants": "commons.md#tenants-over-tenants",
    "merge": "merging.md",
    "share": "share.md",
    "exchange": "exchange.md",
    "lifelong": "streams.md",
}
FAMILIES = {
    "adapt": "tuning of one model with few parameters",
    "share": "parameters shared across layers, features, positions or depth",
    "merge": "combining trained models",
    "route": "mixtures of experts or adapters",
    "lifelong": "many tasks, together or one after another",
    "federate": "many machines, little communication",
    "compress": "smaller weights, activations or caches",
    "serve": "cheaper inference",
    "generate": "networks that write weights",
    "search": "choosing architectures, budgets and hyper-parameters",
    "analyze": "measures, benchmarks and surveys",
}
LIBRARIES = {
    "continual-inference": "https://github.com/LukasHedegaard/continual-inference",
    "deepspeed": "https://github.com/deepspeedai/DeepSpeed",
    "megatron-core": "https://github.com/NVIDIA/Megatron-LM",
    "only-train-once": "https://github.com/tianyic/only_train_once",
    "optuna": "https://optuna.org",
    "peft": "https://github.com/huggingface/peft",
    "pypccl": "https://github.com/PrimeIntellect-ai/pccl",
    "timm": "https://github.com/huggingface/pytorch-image-models",
    "torch": "https://pytorch.org",
    "torchvision": "https://github.com/pytorch/vision",
    "transformers": "https://github.com/huggingface/transformers",
}


def rows() -> list[dict[str, Any]]:
    return json.loads(DATA.read_text(encoding="utf-8"))


def reached(module: str, path: str) -> Any:
    """module.a.b, of which a may be a module that is not imported yet. Raises: ImportError, AttributeError."""
    found = import_module(module)
    for part in path.split("."):
        name = f"{found.__name__}.{part}"
        found = getattr(found, part) if hasattr(found, part) else import_module(name)
    return found


def wrong(one: Mapping[str, Any]) -> str | None:
    """What is not there of an answer: its name in the registry, its options, the call, a library's name."""
    kind, name = one["kind"], one["name"]
    try:
        if kind in REGISTRIES:
            found = REGISTRIES[kind].available()
            if name not in found:
                return f"{kind} {name!r} is not registered"
            if one.get("options"):
                build(found[name].config, one["options"])
        elif kind == "call":
            reached("commonweight", name)
        elif kind == "library":
            if name not in LIBRARIES:
                return f"library {name!r} has no address in docs/gen_coverage.py"
            if one.get("at") and find_spec(name):
                reached(name, one["at"])
        else:
            return f"kind {kind!r} is none of {[*REGISTRIES, 'call', 'library']}"
    except (AttributeError, ImportError, ValueError) as e:
        return f"{kind} {name!r}: {e}"
    return None


def said(one: Mapping[str, Any]) -> str:
    kind, name = one["kind"], one["name"]
    if kind in REGISTRIES:
        options = "".join(f" {k}={str(v).lower()}" for k, v in one.get("options", {}).items())
        return f"{kind} [`{name}{options}`]({PAGES[kind]})"
    if kind == "call":
        return f"`commonweight.{name}`"
    at = f": `{one['at']}`" if one.get("at") else ""
    return f"library [{name}]({LIBRARIES[name]}){at}"


def answer(row: Mapping[str, Any]) -> str:
    if "missing" in row:
        return f"not yet: {row['missing']}"
    if "study" in row:
        return f"no mechanism to build: {row['study']}"
    for one in row["by"]:
        if (problem := wrong(one)) is not None:
            raise SystemExit(f"docs/coverage.json: {row['id']} {row['name']}: {problem}")
    return ", ".join(map(said, row["by"])) + (f"; {row['note']}" if row.get("note") else "")


def table() -> str:
    """How many of each family are answered, then a table for each."""
    held = rows()
    parts = [
        "| | methods | answered | by a library alone | not yet | studies |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups = {
        (core, family): [r for r in held if r["core"] is core and r["family"] == family]
        for core in (True, False)
        for family in FAMILIES
    }
    for core, title in ((True, "core"), (False, "neighbours")):
        mine = [r for r in held if r["core"] is core]
        answered = [r for r in mine if "by" in r]
        alone = [r for r in answered if all(one["kind"] == "library" for one in r["by"])]
        counts = [len(mine), len(answered) - len(alone), len(alone)]
        counts += [sum(key in r for r in mine) for key in ("missing", "study")]
        parts.append(f"| {title} | {' | '.join(map(str, counts))} |")
    for (core, family), mine in groups.items():
        if mine:
            parts += [
                "",
                f"## {'Core' if core else 'Neighbours'}: {family}",
                "",
                f"{FAMILIES[family].capitalize()}.",
                "",
            ]
            parts += ["| id | method | answered by |", "| ---: | --- | --- |"]
            parts += [f"| {r['id']} | {r['name']} | {answer(r)} |" for r in mine]
    return "\n".join(parts)


if __name__ == "__main__":
    sys.exit(marked.main(PAGE, "coverage", table, sys.argv[1:], __doc__))
