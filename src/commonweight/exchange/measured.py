"""The server's numbers on a host, and how good they are."""

from __future__ import annotations

import math

import torch

from ..adapt.tasks import Example
from ..host import Tenant
from .registry import State
from .setting import Prepared


@torch.no_grad()
def load(p: Prepared, state: State) -> None:
    """The server's numbers become the global tenant's."""
    for n, v in p.method.pools(p.setting, state).items():
        p.tenant.pools[n].copy_(v)


def measure(p: Prepared, tenant: Tenant, rows: list[Example]) -> dict[str, float]:
    """The task's metrics on rows; one that is not finite is left out, as JSON has no such number."""
    model = p.host.model.eval()
    with torch.no_grad(), p.host.route(tenant.name):
        found = p.task.measure(model, rows, 64)
    return {k: float(v) for k, v in found.items() if k != "n" and math.isfinite(v)}
