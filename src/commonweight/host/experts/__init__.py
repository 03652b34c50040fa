"""Experts and routers of a mixture: sites whose weights are no linear layers, and the forward that routes by token."""

from __future__ import annotations

from .hook import hooks
from .listed import hooks as listed_hooks
from .stacked import Expert, Stacked, discover

__all__ = ["Expert", "Stacked", "discover", "hooks", "listed_hooks"]
