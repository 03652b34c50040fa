"""Files of other tools as tenants, and tenants as files of other tools: the part that needs the host."""

from __future__ import annotations

from .reading import How, load_adapter
from .writing import export

__all__ = ["How", "export", "load_adapter"]
