"""The tables in docs/coverage.md: what answers each method of the field, made from docs/coverage.json.

python docs/gen_coverage.py --write
python docs/gen_coverage.py --check    # exit code 1 when the tables are not current

A line of the data has `by` (what answers it), `nothing` (what was looked for and not found) or `study` (a paper without
a mechanism). `part`: a piece that the method is known for is not in what answers it. What is in no registry of ours
cannot be named: it raises. Of libraries `release` is what was looked into, of code `commit` a version that was seen;
`seen` is "page" where only its page was, "named" where only its address was.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import generated

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
    "adam-atan2-pytorch": "https://github.com/lucidrains/adam-atan2-pytorch",
    "autogl": "https://github.com/THUMNLab/AutoGL",
    "continual-inference": "https://github.com/LukasHedegaard/continual-inference",
    "deepspeed": "https://github.com/deepspeedai/DeepSpeed",
    "diffusers": "https://github.com/huggingface/diffusers",
    "easyedit": "https://github.com/zjunlp/EasyEdit",
    "flash-linear-attention": "https://github.com/fla-org/flash-linear-attention",
    "lightzero": "https://github.com/opendilab/LightZero",
    "megatron-core": "https://github.com/NVIDIA/Megatron-LM",
    "mergekit": "https://github.com/arcee-ai/mergekit",
    "mlx-lm": "https://github.com/ml-explore/mlx-lm",
    "mup": "https://github.com/microsoft/mup",
    "onecomp": "https://github.com/FujitsuResearch/OneCompression",
    "only-train-once": "https://github.com/tianyic/only_train_once",
    "optuna": "https://optuna.org",
    "peft": "https://github.com/huggingface/peft",
    "pquant-ml": "https://github.com/cern-nextgen/PQuantML",
    "pypccl": "https://github.com/PrimeIntellect-ai/pccl",
    "sentence-transformers": "https://github.com/huggingface/sentence-transformers",
    "sglang": "https://github.com/sgl-project/sglang",
    "structured-pruning-adapters": "https://github.com/LukasHedegaard/structured-pruning-adapters",
    "textpruner": "https://github.com/airaria/TextPruner",
    "timm": "https://github.com/huggingface/pytorch-image-models",
    "torch": "https://pytorch.org",
    "torchvision": "https://github.com/pytorch/vision",
    "transformers": "https://github.com/huggingface/transformers",
    "xnnpack": "https://github.com/google/XNNPACK",
}
CODE = {"official": "official code", "reimplementation": "code of others"}
SEEN = {"page": ", of which its page alone was seen", "named": ", named by others and not seen"}


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
        elif kind in CODE:
            if re.fullmatch(r"[\w.-]+/[\w.-]+", name) is None:
                return f"{kind} {name!r} is no owner and repository: owner/name"
            seen, commit = one.get("seen"), one.get("commit", "")
            if seen not in (None, *SEEN):
                return f"{kind} {name!r}: seen {seen!r} is none of {[*SEEN]}"
            if seen is None and not (one.get("at") and re.fullmatch(r"[0-9a-f]{7}", commit)):
                return f"{kind} {name!r}: give the file that was seen (at), and its commit in 7 digits, or seen"
        else:
            return f"kind {kind!r} is none of {[*REGISTRIES, 'call', 'library', *CODE]}"
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
    seen = f" at `{one['commit']}`" if one.get("commit") else ""
    if kind in CODE:
        return f"{CODE[kind]} [{name}](https://github.com/{name}){at}{seen}{SEEN.get(one.get('seen', ''), '')}"
    release = f" {one['release']}" if one.get("release") else ""
    return f"library [{name}]({LIBRARIES[name]}){release}{at}{seen}"


def sort(row: Mapping[str, Any]) -> str:
    """What answers: "own", "library", "official", "reimplementation", "nothing" or "study"; the first that is there."""
    kinds = {one["kind"] for one in row.get("by", ())}
    if kinds & {*REGISTRIES, "call"}:
        return "own"
    return next((kind for kind in ("library", *CODE) if kind in kinds), "study" if "study" in row else "nothing")


def answer(row: Mapping[str, Any]) -> str:
    if "nothing" in row:
        return f"nothing found: {row['nothing']}"
    if "study" in row:
        return f"no mechanism to build: {row['study']}"
    for one in row["by"]:
        if (problem := wrong(one)) is not None:
            raise SystemExit(f"docs/coverage.json: {row['id']} {row['name']}: {problem}")
    part = "in part: " if row.get("part") else ""
    return part + ", ".join(map(said, row["by"])) + (f"; {row['note']}" if row.get("note") else "")


def counted(mine: Sequence[Mapping[str, Any]]) -> list[str]:
    """The cells of a line of counts; of what is answered in part, how many in brackets."""
    cells = [str(len(mine))]
    for kind in ("own", "library", *CODE, "nothing", "study"):
        of = [r for r in mine if sort(r) == kind]
        part = sum(bool(r.get("part")) for r in of)
        cells.append(f"{len(of)} ({part})" if part else str(len(of)))
    return cells


def table() -> str:
    """How many of each family are answered, then a table for each."""
    held = rows()
    parts = [
        "| | methods | commonweight | library | official code alone | code of others alone | nothing found | studies |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    groups = {
        (core, family): [r for r in held if r["core"] is core and r["family"] == family]
        for core in (True, False)
        for family in FAMILIES
    }
    for core, title in ((True, "core"), (False, "neighbours")):
        parts.append(f"| {title} | {' | '.join(counted([r for r in held if r['core'] is core]))} |")
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


def pages() -> generated.Pages:
    return generated.parts(PAGE, {"coverage": table})


if __name__ == "__main__":
    sys.exit(generated.main(pages, sys.argv[1:], __doc__))
