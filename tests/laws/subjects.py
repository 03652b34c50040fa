"""What the laws run over: every registered method, with the small options its own test file declares."""

from __future__ import annotations

import importlib
import zlib
from collections.abc import Sequence
from typing import Any

import torch

import commonweight as cw
from commonweight.host import Tenant
from tests.drawn import TIMES

METHODS = sorted(cw.methods.available())


def _says(method: str, name: str, default: Any) -> Any:
    """What the method's own test file, tests/methods/<family>/test_<method>.py, says under a name."""
    family = cw.methods.get(method).family
    return getattr(importlib.import_module(f"tests.methods.{family}.test_{method.replace('-', '_')}"), name, default)


def small(method: str) -> dict[str, Any]:
    """`SMALL`: options at which the method fits widths of 16 to 64."""
    return dict(_says(method, "SMALL", {}))


def variants(method: str) -> list[dict[str, Any]]:
    """`SMALL`, and it with each of `VARIANTS`: options under which the plan is of another make."""
    return [small(method), *({**small(method), **v} for v in _says(method, "VARIANTS", []))]


def soft(method: str) -> dict[str, Any]:
    """`SOFT`: small options under which nothing is chosen token by token, where inputs that are rounded a little would
    now and then choose another expert."""
    return dict(_says(method, "SOFT", small(method)))


def reached(method: str) -> dict[str, Any]:
    """`REACHED`: small options under which every trained pool has a part in a fresh tenant's answer."""
    return dict(_says(method, "REACHED", small(method)))


def model_of(method: str) -> str:
    """`MODEL`: the kind of model for the laws that need only one, where the method reads nothing in a Llama."""
    return _says(method, "MODEL", "llama")


def can(method: str, host: cw.Host) -> bool:
    """Whether the method has something to read: sites of its kinds, and of those such as `READS(site)` takes."""
    about, reads = cw.methods.get(method), _says(method, "READS", lambda site: True)
    try:
        return not about.kinds or any(reads(s) for s in host.sites_for(about))
    except cw.CommonweightError:
        return False


def stir(tenant: Tenant, seed: int = 0, std: float = 0.1) -> Tenant:
    """Moves every trainable pool, so that the tenant does something."""
    g = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in tenant.parameters():
            p.add_(std * torch.randn(p.shape, generator=g).to(p.device))
    return tenant


def pairs(kinds: Sequence[str], always: tuple[str, ...] = ("llama", "bert"), more: int = 2) -> list[tuple[str, str]]:
    """(method, kind of model): each method on the models that most people have and on two of the others, which two its
    name decides; `make fuzz` runs all."""
    rest = [k for k in kinds if k not in always]

    def some(method: str) -> Sequence[str]:
        at = zlib.crc32(method.encode()) % len(rest)
        return kinds if TIMES else [*always, *(rest[(at + i) % len(rest)] for i in range(more))]

    return [(m, k) for m in METHODS for k in some(m)]
