"""One run from a folder to a folder: a model is made smaller, healed, measured, written."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..adapt.base import limit, pick_device, tokenizer_of
from ..adapt.checkpoint import Store
from ..adapt.recipe import Recipe
from ..adapt.rows import Row, read
from ..adapt.tasks import LM
from ..adapt.tasks.distil import Distillation
from ..adapt.tasks.features import Features
from ..adapt.tasks.scored import output_layer
from ..core import CommonweightError, build, first_line, parse, parse_count, unknown
from ..formats import atomic
from .healing import Healed
from .healing import heal as heal_model
from .make import share, unshared
from .methods import get
from .saving import FORMS, room, save, tried


def run(
    model: str,
    out: str | Path,
    *,
    method: str = "recursive",
    option: Sequence[str] = (),
    form: str = "remote-code",
    rows: str | None = None,
    heal: str | None = None,
    tokens: str | int | None = None,
    eval_file: str | None = None,
    dev: float | None = None,
    loss: str = "forward-kl",
    resume: bool = False,
    device: str = "auto",
    say: Callable[[str], None] = print,
    progress: Any = None,
    recipe: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """What `commonweight share` does; the answer is what stands in ``share.json`` of the new folder.

    While it heals, the run's state lies in ``<out>.checkpoint``; a killed run goes on with resume=True, to the same
    bits. Files may be rows as `adapt` reads them, or a .txt, which is one text.
    """
    out = Path(out)
    room(out)
    if form not in FORMS:
        raise unknown("form", form, FORMS)
    build(Recipe, dict(recipe or {}))  # what cannot be is told before anything is read
    build(Distillation, {"loss": loss})
    amount = tokens if tokens is None or isinstance(tokens, int) else parse_count(tokens, "tokens")
    texts = {what: rows_of(f) for what, f in (("rows", rows), ("heal", heal), ("eval", eval_file)) if f is not None}
    options = parse(get(method).config, list(option))
    whole = opened(model).to(pick_device(device))
    small = share(whole, method, rows=texts.get("rows", texts.get("heal")), **options)
    before, after = _size(whole), _size(small)
    say(f"{model}: {before:,} parameters become {after:,} ({after / before:.1%})")
    told: dict[str, Any] = {"model": model, "method": method, "options": small.config.sharing["options"]}
    told |= {"form": form, "parameters": {"original": before, "shared": after}}
    checkpoint = out.with_name(f"{out.name}.checkpoint")
    if "eval" in texts:
        told["measured"] = {"original": measure(whole, texts["eval"])} if output_layer(whole) is not None else {}
        told["measured"]["shared"] = measure(small, texts["eval"], teacher=whole)
        for name, found in told["measured"].items():
            say(f"{name}: {_line(found)}")
    if heal is not None:
        tried(small, form, out)
        passes: dict[str, Any] = {"epochs": 1.0} if amount is None else {}
        healed: Healed = heal_model(
            small, teacher=whole, rows=texts["heal"], tokens=amount, dev_rows=dev, loss=loss, checkpoint=checkpoint,
            resume=resume, progress=progress, **passes, **(recipe or {}),
        )  # fmt: skip
        told["healed"] = {"steps": healed.steps, "seconds": round(healed.seconds, 2), "settings": healed.settings}
        told["healed"] |= {"rows": heal, "metrics": healed.metrics, "note": healed.note}
        if "measured" in told:
            told["measured"]["healed"] = measure(small, texts["eval"], teacher=whole)
            say(f"healed: {_line(told['measured']['healed'])}")
    save(small, out, form)
    atomic.write(out / "share.json", json.dumps(told, indent=2, ensure_ascii=False).encode())
    Store(checkpoint).clear()
    size = sum(p.stat().st_size for p in out.rglob("*.safetensors"))
    say(f"{out}: {size:,} bytes of weights, {form}")
    return told


def opened(model: str) -> Any:
    """A language model, or an encoder, in float32: it is trained. Raises: CommonweightError where it cannot be read."""
    import transformers as tf

    unshared(model)
    try:
        config: Any = tf.AutoConfig.from_pretrained(model)
        kinds = [getattr(tf, n, None) for n in config.architectures or []]
        kind: Any = next((k for k in kinds if k is not None), tf.AutoModel)
        return kind.from_pretrained(model, dtype=torch.float32).eval()
    except (OSError, ValueError, KeyError, ImportError, NotImplementedError) as e:
        raise CommonweightError(
            f"model {model!r} cannot be read: {first_line(e)}; give a folder with config.json and "
            "model.safetensors, or a name on the hub"
        ) from e


def rows_of(source: str) -> list[Row]:
    """Rows of a file; a .txt is one row."""
    if not source.endswith(".txt"):
        return read(source)
    try:
        text = Path(source).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise CommonweightError(f"{source}: it cannot be read as text: {e}") from e
    if not text.strip():
        raise CommonweightError(f"{source}: the file is empty")
    return [{"text": text}]


def measure(model: Any, rows: Sequence[Row], max_length: int | None = None, teacher: Any = None) -> dict[str, float]:
    """Loss and bits per byte of a language model; of an encoder, the error of its states beside its teacher's."""
    tokenizer, speaks = tokenizer_of(model), output_layer(model) is not None
    kind: Any = LM if speaks else Features
    task = kind(tokenizer, limit(model, tokenizer, max_length, kind.usual_length))
    task = task if speaks else task.taught_by(teacher)
    examples = task.examples(rows)
    with torch.no_grad():
        return task.measure(model.eval(), examples, 8)


def _size(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _line(found: dict[str, float]) -> str:
    if "bits_per_byte" not in found:
        return f"error of the hidden states {found['loss']:.4f} of their mean square"
    return f"loss {found['loss']:.4f} bits per byte {found['bits_per_byte']:.4f}"
