"""The only layer that touches a model."""

from .host import Host
from .sites import discover
from .tenant import Tenant

__all__ = ["Host", "Tenant", "discover"]
