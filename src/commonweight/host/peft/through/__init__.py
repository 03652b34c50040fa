"""Adapters of PEFT's types that no method here has: PEFT computes, and what they do is measured."""

from __future__ import annotations

from .reading import read

__all__ = ["read"]
