"""LoRA files of kohya's scripts, LyCORIS (LoCon, LoHa, LoKr, full, norms, GLoRA, (IA)3, OFT) and diffusers; LoRA and
DoRA out."""

from __future__ import annotations

from .joining import KINDS, joined, module_of
from .keys import stability_name
from .reading import Naming, read
from .writing import PARTS, diffusers, kohya, part_of

__all__ = ["KINDS", "PARTS", "Naming", "diffusers", "joined", "kohya", "module_of", "part_of", "read", "stability_name"]
