"""For binds that go by whole rows: which sites see them, and which tokens of a row are no padding."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import CommonweightError, Plan, Site, counted
from .apart import Unfit
from .current import Current
from .sites import Pattern, Physical
from .states import recomputing


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


def refuse(method: str, plan: Plan, every: Sequence[Site]) -> None:
    """Where a plan's bind goes by whole rows in a causal block."""
    if names := {u.site for u in plan.uses if getattr(u.bind, "whole", False)}:
        seen(method, [s for s in every if s.name in names], every, "*")


@torch.compiler.disable(reason="which tokens of a row are padding is looked for beside what is traced")
def there(at: Physical, x: Tensor, current: Current) -> Tensor:
    """Which tokens of what a site is given, (rows, ..., d_in), are no padding: bool (rows, T); all, where the model is
    given no mask. Raises: Unfit where x is not the pass's rows, or not the tokens that its mask is of."""
    run = current.thread.run
    if not (current.replayed or recomputing()) and (run.given is None or run.given[0] is None):
        raise CommonweightError(
            f"{at.name}: what is padding comes of the whole model's input; call the model, not a part of it"
        )
    if len(x) != run.rows:
        raise Unfit(
            f"{at.name}: it is given {tuple(x.shape)} in a pass of {counted(run.rows, 'row')}, so that no row's mean "
            "is known; make the tenant without this site",
            at.name,
        )
    flat = x.flatten(1, -2) if x.dim() > 3 else x
    known, mask = current.there(at.name, flat), run.masks_of(flat.shape[-2]).get("attention_mask")
    texts = current.padding is not None and current.padding.tower(at.name) == "language"
    if x.dim() > 2 and texts and isinstance(mask, Tensor) and (known is None or mask.shape[1] != flat.shape[1]):
        raise Unfit(
            f"{at.name}: it is given {tuple(x.shape)} under an attention_mask of {tuple(mask.shape)}, so that it "
            "cannot be known which tokens are padding; make the tenant without this site",
            at.name,
        )
    if known is not None:
        return known.to(x.device)
    return torch.ones(len(x), x[0].numel() // x.shape[-1], dtype=torch.bool, device=x.device)
