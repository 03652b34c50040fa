"""The only layer that touches a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .common import Common
from .tenant import Tenant

if TYPE_CHECKING:
    from .experts import discover
    from .host import Host

__all__ = ["Common", "Host", "Tenant", "discover"]


_LATER = {"Host": ".host", "discover": ".experts"}


def __getattr__(name: str) -> Any:
    """A host loads torch's compiler, which takes two seconds and 70 MB: merging reads tenants without."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATER[name], __name__), name)
    return value
