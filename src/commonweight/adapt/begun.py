"""Rows that teach a tenant nothing: an activated LoRA does not begin there, or they run past all that it changes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from ..core import CommonweightError, Use, counted
from ..host import Tenant
from ..host.invoked import NEVER, last
from .tasks import Example, Task


def reached(loss: Tensor, tenants: Sequence[Tenant]) -> None:
    """Raises: CommonweightError where nothing that the tenants train had a part in the loss of a batch in training."""
    if torch.is_grad_enabled() and not loss.requires_grad:
        sites = [u.site for t in tenants for u in _uses(t)] or ["all of the model"]
        raise CommonweightError(
            f"{tenants[0].name}: these rows do not reach what it changes ({sites[0]}"
            f"{f' and {len(sites) - 1} more' if len(sites) > 1 else ''}), so that nothing would be trained; choose "
            "other sites: of a model that reads images too, rows of texts run through sites='language'"
        )


def _uses(tenant: Tenant) -> Sequence[Use]:
    """None of a whole model that trains in a tenant's place, which has no plan."""
    return () if tenant.plan is None else tenant.plan.uses


def unread(tenants: Sequence[Tenant]) -> None:
    """Warns of sites that had no part in the loss of the first step, whose numbers got no gradient: after it. Experts
    are left out, of which rows choose; so is a tenant without rows in the batch, none of whose own pools had a part:
    those of a common have it by others' rows."""
    for t in (t for t in tenants if _uses(t)):
        common = t.common.pools if t.common is not None else ()
        own = [p.grad is not None for n, p in t.pools.items() if n not in common and p.requires_grad]
        if own and not any(own):
            continue
        got: dict[str, bool] = {}
        for use in _uses(t):
            mine = [t.pools[p] for r in use.reads.values() for p in r.pools if t.pools[p].requires_grad]
            if mine and "[" not in use.site:
                got[use.site] = got.get(use.site, False) or any(p.grad is not None for p in mine)
        idle = [s for s, had in got.items() if not had]
        if idle and len(idle) < len(got):
            warnings.warn(
                f"{t.name}: {len(idle)} of {len(got)} sites had no part in the first step ({', '.join(idle[:3])}"
                f"{', ...' if len(idle) > 3 else ''}): rows like these do not train them; leave them out of sites",
                stacklevel=2,
            )


def begun(tenant: Tenant, task: Task, examples: Sequence[Example]) -> None:
    """Warns of rows without the tenant's invocation tokens. Cost: a look at each row; none for other tenants.

    Raises: CommonweightError where no row has them, so that nothing would be trained.
    """
    for tokens in tenant.invocations:
        ids = [i for e in examples if isinstance(i := task.collate([e]).get("input_ids"), Tensor)]
        without = sum(bool((last(i, tokens) == NEVER).all()) for i in ids)
        said = f"{tenant.name}: {counted(without, 'row')} of {len(ids):,} without the invocation tokens {list(tokens)}"
        if ids and without == len(ids):
            raise CommonweightError(
                f"{said}, so that nothing is trained; take tokens that the prompts have, as the tokenizer makes them "
                "there (a word behind a space may be another token)"
            )
        if without:
            warnings.warn(f"{said}: the base answers these, and nothing of them is trained", stacklevel=2)
