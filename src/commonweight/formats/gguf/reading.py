"""llama.cpp's LoRA files in."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from pathlib import Path

from ...core import CommonweightError
from .. import tensors as given
from ..changes import Change
from . import container
from .names import INVOCATION, TABLE, About, name_of, turn

_SLOTS = "lora_a", "lora_b"


def read(path: Path, about: About, modules: Iterable[str]) -> tuple[dict[str, Change], tuple[int, ...]]:
    """({module: change}, tokens from which on it acts, none: everywhere). modules: names of the base's layers, as
    transformers has them.

    lora_a (r, inp), lora_b (out, r); the scale is alpha / r, or 1 where alpha is 0 or not there. Experts, (E, r, inp)
    and (E, out, r), come one by one. Vectors of norms are left out with a warning, as llama.cpp leaves them out.
    Raises: CommonweightError for another architecture, a layer that the base lacks, a file that is damaged.
    """
    file = container.read(path)
    kind, form = file.keys.get("general.type"), file.keys.get("adapter.type")
    if kind != "adapter" or form != "lora":
        what = f"general.type {kind!r}, adapter.type {form!r}"
        raise CommonweightError(f"{path}: {what}; wanted an adapter of type lora, as convert_lora_to_gguf.py writes it")
    invocation = file.keys.get(INVOCATION, [])
    if not isinstance(invocation, list) or not all(type(t) is int and t >= 0 for t in invocation):
        raise CommonweightError(f"{path}: {INVOCATION} is {invocation!r}; wanted a list of token ids")
    arch, alpha = file.keys.get("general.architecture"), file.keys.get("adapter.lora.alpha", 0.0)
    if arch != about.architecture.name:
        raise CommonweightError(
            f"{path}: made for another model: its architecture is {arch!r}, this base is {about.architecture.name!r}"
        )
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CommonweightError(f"{path}: adapter.lora.alpha is {alpha!r}; wanted a number")
    known = {n: m for m in modules if (n := name_of(m, about)) is not None}
    tensors = {k: given.looked_at(f"{path}: {k}", v) for k, v in file.tensors.items()}
    found, rest = given.parts(tensors, _SLOTS)
    if norms := [k for k in rest if k.endswith("_norm.weight")]:
        warnings.warn(
            f"{path}: {len(norms)} vectors of norms ({norms[0]}, ...) are left out, as llama.cpp leaves them out",
            stacklevel=2,
        )
    if other := [k for k in rest if k not in norms]:
        raise CommonweightError(f"{path}: {other[0]} is no factor of a LoRA; llama.cpp would not load it either")
    if not found:
        raise CommonweightError(f"{path}: holds no adapter")
    out: dict[str, Change] = {}
    for name, parts in found.items():
        a, b = parts.get("lora_a"), parts.get("lora_b")
        if a is not None and b is not None and a.dim() == b.dim() == 3 and len(a) == len(b):
            home, leaf = _experts(name, known, path)
            pairs = [given.pair(f"{path}: {name}", x, y) for x, y in zip(a, b)]
            out |= {f"{home}.{i}.{leaf}": Change(x, y, _scale(alpha, len(x))) for i, (x, y) in enumerate(pairs)}
            continue
        if name == TABLE and a is not None and a.dim() == 2:
            a = a.T  # (vocabulary, r), for llama.cpp takes rows of it
        A, B = given.pair(f"{path}: {name}", a, b)
        if name not in known:
            raise CommonweightError(
                f"{path}: {name}: this base has no such layer that is a site; made for another model"
            )
        out[known[name]] = Change(A, turn(name, B, about, back=True), _scale(alpha, len(A)))
    return out, tuple(invocation)


def _scale(alpha: float, rank: int) -> float:
    return alpha / rank if alpha else 1.0


def _experts(name: str, known: dict[str, str], path: Path) -> tuple[str, str]:
    """(the module of all experts of a block, the projection's name)."""
    block, leaf = name.rpartition("_exps")[0].rsplit(".", 1) if "_exps" in name else ("", "")
    near = next((m for n, m in known.items() if n.startswith(f"{block}.")), None)
    if not leaf.startswith("ffn_") or near is None:
        raise CommonweightError(f"{path}: {name}: this base has no such experts; made for another model")
    home = near[: near.index(f".{block.split('.')[1]}.") + len(block.split(".")[1]) + 1]
    return f"{home}.mlp.experts", f"{leaf.removeprefix('ffn_')}_proj"
