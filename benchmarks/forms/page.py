"""The part of docs/results/compare.md about these forms, from docs/results/compare/forms.json."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from commonweight.compare.summary import paired

from ..elsewhere.page import HEADS, ROOT, cells, placed
from ..renewed import point
from .bases import compressed

RESULTS = ROOT / "docs" / "results"
PAGE, DATA = RESULTS / "compare.md", RESULTS / "compare" / "forms.json"
BEGIN, END = "<!-- forms:begin -->", "<!-- forms:end -->"


class Form(NamedTuple):
    """method and options: what it is here; recipe: of `adapt.Recipe`, in place of the usual. beside: methods whose rows
    of the table above stand below its own. about: what a reader has to know. base: the base is made, not the encoder
    as it is; also: methods that are run on it too."""

    method: str
    about: str
    options: Mapping[str, Any] = {}
    recipe: Mapping[str, Any] = {}
    beside: tuple[str, ...] = ()
    base: Callable[[], Path] | None = None
    also: tuple[str, ...] = ()


FORMS = {
    "LoRA-FA": Form("lora-fa", "A stays as it was drawn, so that nothing of it is stored or trained."),
    "qGOFT": Form(
        "goft", "four free numbers for each pair in place of an angle, and the penalty.", {"quasi": True},
        beside=("goft",),
    ),
    "VectorFit without AVF": Form(
        "vectorfit", "no vector rests; the row of `vectorfit` above, with its freezing (AVF), is below.",
        {"resting": 0.0}, beside=("vectorfit",),
    ),
    "VL-Adapter": Form(
        "bottleneck", "the released code's activation and start, in an encoder of text, each task with its own; of "
        "`reduction=8`, as released, it would have 895 kB.", {"act": "gelu_new", "start": "normal"},
        beside=("bottleneck",),
    ),
    "GradNormLoRP": Form(
        "full", "all weights, by steps of rank 4 on rows of length one, as released.",
        recipe={"optimizer": "gradnormlorp"}, beside=("full",),
    ),
    "Compress, then Prompt": Form(
        "prompt-tuning", "a prompt that begins as the table's first entries, on the encoder made small: in each weight "
        "of a layer the half of least magnitude is zero, the rest is rounded to 3 bits (the paper: GPTQ and SparseGPT, "
        "of language models, and prompts of their own loss). Rows with \"small base\" are on it, the others on the "
        "encoder as it is.", {"start": "first", "tokens": 21}, beside=("prompt-tuning", "probe"),
        base=compressed, also=("probe", "lora"),
    ),
}  # fmt: skip
TITLE = "## Forms that have names of their own"
INTRODUCTION = """\
`python -m benchmarks.forms`. Papers whose method is here an option of another one, a name for it, or an optimizer: by
the same recipe, rows, seeds, budgets and trials of the rate as the table above, whose rows for `lora` and for the
nearest method stand below each. The steps of forms were timed beside other work.{missing}
"""


def kept() -> dict[str, Any]:
    return json.loads(DATA.read_text("utf-8")) if DATA.exists() else {}


def put(page: str, parts: Mapping[str, Any]) -> str:
    """The page with this part as it is now."""
    return placed(page, section(parts), BEGIN, END)


def section(parts: Mapping[str, Any]) -> str:
    """Between its two marks; nothing of none."""
    if not parts:
        return ""
    left = [name for name in FORMS if name not in parts]
    out = [INTRODUCTION.format(missing=f" Not run yet: {', '.join(left)}." if left else "")]
    above = json.loads((RESULTS / "compare" / "results.json").read_text("utf-8"))["points"]
    out += [f"### {name}\n\n{told(FORMS[name], parts[name], above)}" for name in FORMS if name in parts]
    return f"\n{BEGIN}\n{TITLE}\n\n" + "\n".join(out) + f"{END}\n"


def told(form: Form, part: Mapping[str, Any], above: list[dict[str, Any]]) -> str:
    """What a form is, a command of a run of it, its rows and those of others beside it."""
    lora = max((p for p in above if p["method"] == "lora"), key=lambda p: p["bytes"])
    said = "".join(f" --{k} {v}" for k, v in form.recipe.items()) + (", small base" if form.base else "")
    own = [against(p, lora) | {"name": p["name"] + said} for p in part["points"]]
    rows = ["| " + " | ".join(HEADS) + " |", "| --- |" + " ---: |" * (len(HEADS) - 1)]
    beside = [p for m in ("lora", *form.beside) for p in above if p["method"] == m]
    rows += ["| " + " | ".join(cells(p)) + " |" for p in (*own, *beside)]
    small = [f"{m['budget']}: it starts at {m['nbytes']:,} bytes." for m in part["misfits"]]
    about = " ".join([own[0]["name"].join("``"), "here:", form.about, *small])
    return f"{about}\n\n```console\n$ {part['points'][0]['runs'][0]['command']}\n```\n\n" + "\n".join(rows) + "\n"


def against(p: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    apart = paired(point(p), point(other))
    return {**p, "difference": apart and asdict(apart)}
