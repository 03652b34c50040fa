"""llama.cpp's LoRA files (GGUF), both ways, in the layout of its convert_lora_to_gguf.py."""

from __future__ import annotations

from .names import About
from .reading import read
from .writing import write

__all__ = ["About", "read", "write"]
