"""Rows in which an activated LoRA does not begin: the base answers them, and nothing of them is trained."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from torch import Tensor

from ..core import CommonweightError, counted
from ..host import Tenant
from ..host.invoked import NEVER, last
from .tasks import Example, Task


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
