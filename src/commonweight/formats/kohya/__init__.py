"""LoRA files of kohya's scripts, LyCORIS (LoCon, LoHa, LoKr, full, norms, GLoRA, (IA)3, OFT) and diffusers."""

from __future__ import annotations

from .reading import Naming, read

__all__ = ["Naming", "read"]
