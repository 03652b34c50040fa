"""For binds that go by whole rows: which sites see them, and which see no later token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..core import CommonweightError, Plan, Site
from .sites import Pattern


def seen(method: str, mine: list[Site], every: Sequence[Site], pattern: Pattern) -> list[Site]:
    """The sites of `mine` outside of causal blocks. Raises: CommonweightError where no other block has one, or where a
    pattern names one inside."""
    blocks = [s for s in every if s.kind == "block"]
    within = {c: tuple(f"{s.name}." for s in blocks if (s.role == "causal") == c) for c in (True, False)}
    causal = [s.name for s in mine if f"{s.name}.".startswith(within[True])]
    if causal and (pattern is not None or not any(f"{s.name}.".startswith(within[False]) for s in mine)):
        kinds = " and ".join(sorted({s.kind for s in mine}))
        raise CommonweightError(
            f"{method} reads sites of kind {kinds} of encoders: at {causal[0]} no token sees a later one, and what "
            "goes by the whole row would tell it what comes after it; name sites of an encoder, or take another method"
        )
    return [s for s in mine if s.name not in {*causal}]


def refuse(method: str, plan: Plan, every: Sequence[Site], prompts: bool) -> None:
    """Where a plan's bind goes by whole rows in a causal block. prompts: whether the model's rows have prompts, whose
    embedding is a row's then."""
    rows = {u.site for u in plan.uses if getattr(u.bind, "whole", False)}
    rows |= {u.site for u in plan.uses if getattr(u.bind, "context", "") and not prompts}
    if rows:
        seen(method, [s for s in every if s.name in rows], every, "*")


def by_prompt(model: Any, every: Sequence[Site]) -> bool:
    """Whether it is a decoder that answers: a row begins with its prompt, and what follows is not known yet."""
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return False
    return getattr(model, "can_generate", bool)() and any(s.kind == "block" and s.role == "causal" for s in every)
