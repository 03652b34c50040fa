"""What the laws run over: every registered method, with the small options its own test file declares."""

from __future__ import annotations

import importlib
from typing import Any

import torch

import commonweight as cw
from commonweight.host import Tenant

METHODS = sorted(cw.methods.available())


def small(method: str) -> dict[str, Any]:
    """Options at which the method fits widths of 16 to 64: `SMALL` in tests/methods/test_<method>.py."""
    module = importlib.import_module(f"tests.methods.test_{method.replace('-', '_')}")
    return dict(getattr(module, "SMALL", {}))


def stir(tenant: Tenant, seed: int = 0, std: float = 0.1) -> Tenant:
    """Moves every trainable pool, so that the tenant does something."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in tenant.parameters():
            p.add_(std * torch.randn(p.shape, generator=g))
    return tenant
