"""Tenants to and from PEFT's adapter folders: the part that needs the host."""

from __future__ import annotations

from .reading import import_peft
from .writing import export_peft

__all__ = ["export_peft", "import_peft"]
