"""Recipes of mergekit-moe: dense models that become the experts of one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from ...core import CommonweightError, unknown
from .fields import keys, listed, mapping, precision, text, whole
from .types import Expert, Input, Mixture, Recipe, Slice

KEYS = (
    "base_model", "experts", "shared_experts", "gate_mode", "experts_per_token", "dtype", "architecture", "rest",
    "seed",
)  # fmt: skip
PROMPTED = ("hidden", "hidden_avg", "hidden_last", "ffn", "cheap_embed")
GATES = (*PROMPTED, "random", "uniform_random")
REST = ("base", "mean")


def is_mixture(body: Mapping[str, Any]) -> bool:
    return "experts" in body and "method" not in body and "merge_method" not in body


def read(body: Mapping[str, Any]) -> Recipe:
    """`rest` and `seed` are ours, as is the gate `ffn`. Raises: CommonweightError for what is missing, not known, or
    makes no mixture: fewer experts than a token takes, prompts that are missing or the same for all."""
    keys("recipe", body, KEYS)
    if (base := text("base_model", body.get("base_model"))) is None:
        raise CommonweightError("recipe: base_model is missing; the model whose attention, norms and tables are taken")
    gate, rest = _word(body, "gate_mode", GATES, "hidden"), _word(body, "rest", REST, "base")
    experts = tuple(_expert(f"experts[{i}]", e, gate) for i, e in enumerate(listed("experts", body["experts"], 2)))
    active = whole("experts_per_token", body.get("experts_per_token", 2))
    if not 1 <= active <= len(experts):
        raise CommonweightError(f"experts_per_token is {active}; there are {len(experts)} experts, wanted 1 to so many")
    if gate in PROMPTED and len({(e.positive, e.negative) for e in experts}) == 1:
        raise CommonweightError(
            "experts: all have the same prompts, so that the routers could not tell them apart; give each prompts of "
            "what it is for, or gate_mode: random for a model that is trained afterwards"
        )
    shared = [_expert(f"shared_experts[{i}]", e, "") for i, e in enumerate(body.get("shared_experts") or [])]
    if len(shared) > 1:
        raise CommonweightError(f"shared_experts: {len(shared)}; no layout that is written here has more than one")
    architecture = text("architecture", body.get("architecture"))
    seed = whole("seed", body.get("seed", 0))
    models = tuple(Input(e.model) for e in (*experts, *shared))
    notices = [] if architecture is None else [f"architecture: {architecture} is not looked at; the base decides"]
    if len({(e.model, e.scale) for e in experts}) == 1:
        notices.append("experts: all are the same model, so that the mixture answers as it does until it is trained")
    return Recipe(
        "mixture", (Slice(models),), base, dtype=precision("dtype", body.get("dtype")), notices=tuple(notices),
        mixture=Mixture(experts, shared[0] if shared else None, gate, active, rest, seed),
    )  # fmt: skip


def _word(body: Mapping[str, Any], key: str, known: tuple[str, ...], default: str) -> str:
    found = body.get(key, default)
    if found not in known:
        raise unknown(key, str(found), known)
    return found


def _expert(where: str, body: Any, gate: str) -> Expert:
    keys(where, mapping(where, body), ("source_model", "positive_prompts", "negative_prompts", "residual_scale"))
    if (model := text(f"{where}.source_model", body.get("source_model"))) is None:
        raise CommonweightError(f"{where}: source_model is missing; wanted a path or a hub name")
    positive = _prompts(f"{where}.positive_prompts", body.get("positive_prompts"))
    if gate in PROMPTED and not positive:
        raise CommonweightError(f"{where}: positive_prompts are missing; gate_mode {gate} reads what the expert is for")
    scale = body.get("residual_scale")
    scale = 1.0 if scale is None else scale
    if isinstance(scale, bool) or not isinstance(scale, int | float) or not math.isfinite(scale):
        raise CommonweightError(f"{where}: residual_scale is {scale!r}; wanted a number")
    return Expert(model, positive, _prompts(f"{where}.negative_prompts", body.get("negative_prompts")), float(scale))


def _prompts(where: str, body: Any) -> tuple[str, ...]:
    found = [] if body is None else listed(where, body, 0)
    if wrong := [p for p in found if not isinstance(p, str) or not p]:
        raise CommonweightError(f"{where}: {wrong[0]!r}; wanted texts")
    return tuple(found)
