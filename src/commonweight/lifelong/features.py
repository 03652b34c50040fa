"""What a classifier's encoder makes of rows, for methods that tell tasks apart by it."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adapt.tasks.base import Example, Task, batches
from ..host import Host
from ..host.embedded import of_batch
from ..host.weights import device_of
from .asks import Learned
from .bodies import put

_NAME = "features-of-rows"


@torch.no_grad()
def features(host: Host, tenant: Learned | None, task: Task, rows: Sequence[Example], size: int) -> Tensor:
    """Pooled hidden states, (rows, d) on the CPU, as a tenant makes them; None: the plain base. Cost: a pass."""
    host.model.eval()
    if tenant is not None:
        put(host, _NAME, tenant)
    out: Tensor | None = None
    try:
        with host.route(_NAME if tenant is not None else None):
            for places, batch in batches(task, rows, size, device_of(host.model)):
                batch.pop("labels")
                found = host.model(**batch, output_features=True).hidden_states[0].float().cpu()
                out = torch.empty(len(rows), found.shape[1]) if out is None else out
                out[places] = found
    finally:
        if tenant is not None:
            host.remove(_NAME)
    assert out is not None
    return out


@torch.no_grad()
def queries(host: Host, task: Task, rows: Sequence[Example], size: int, by: str = "base") -> Tensor:
    """What `prompt-pool` asks by, (rows, d) on the CPU: `host.queries`, or `host.embedded`. Cost: a pass of the plain
    base; of embeddings none."""
    out: Tensor | None = None
    for places, batch in batches(task, rows, size, device_of(host.model)):
        batch.pop("labels")
        found = host.base.queries.of_batch(host.model, batch) if by == "base" else of_batch(host.model, batch)
        found = found.cpu()
        out = torch.empty(len(rows), found.shape[1]) if out is None else out
        out[places] = found
    assert out is not None
    return out


def class_means(found: Tensor, rows: Sequence[Example], classes: int) -> Tensor:
    """(classes, d); of a class without rows, zeros."""
    labels = torch.tensor([r["label"] for r in rows])
    return torch.stack(
        [found[labels == c].mean(0) if (labels == c).any() else found.new_zeros(found.shape[1]) for c in range(classes)]
    )


def nearest(found: Tensor, means: Sequence[Tensor]) -> Tensor:
    """(rows,): which set of class means has the one of largest cosine."""
    unit = torch.nn.functional.normalize(found, dim=1)
    each = [(unit @ torch.nn.functional.normalize(m, dim=1).T).max(1).values for m in means]
    return torch.stack(each, 1).argmax(1)
