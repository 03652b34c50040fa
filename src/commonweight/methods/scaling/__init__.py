"""Scaling: inputs or outputs are multiplied by vectors."""

from .ia3 import IA3

__all__ = [
    "IA3",
]
