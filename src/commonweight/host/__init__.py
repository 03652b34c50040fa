"""The only layer that touches a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .common import Common
    from .experts import discover
    from .host import Host
    from .tenant import Tenant

__all__ = ["Common", "Host", "Tenant", "discover"]


_LATER = {"Common": ".common", "Host": ".host", "Tenant": ".tenant", "discover": ".experts"}


def __getattr__(name: str) -> Any:
    """A host loads torch's compiler, which takes two seconds and 70 MB: merging reads tenants without. A tenant loads
    all methods: a shared model is opened without."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATER[name], __name__), name)
    return value
