"""The only layer that touches a model."""

from .common import Common
from .host import Host
from .sites import discover
from .tenant import Tenant

__all__ = ["Common", "Host", "Tenant", "discover"]
