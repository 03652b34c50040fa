"""The only layer that touches a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .common import Common
from .experts import discover
from .tenant import Tenant

if TYPE_CHECKING:
    from .host import Host

__all__ = ["Common", "Host", "Tenant", "discover"]


def __getattr__(name: str) -> Any:
    """A host loads torch's compiler, which takes two seconds and 70 MB: merging reads tenants without."""
    if name != "Host":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = import_module(".host", __name__).Host
    return value
