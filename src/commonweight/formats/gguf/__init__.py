"""llama.cpp's LoRA files (GGUF), both ways, in the layout of its convert_lora_to_gguf.py."""

from __future__ import annotations

from .names import MIXTURES, About
from .reading import read
from .writing import write

__all__ = ["MIXTURES", "About", "read", "write"]
