"""mlx-lm's adapter folders, both ways: adapters.safetensors beside adapter_config.json (LoRA, DoRA, full)."""

from __future__ import annotations

from .names import BARE, MIXTURES
from .reading import read
from .writing import write

CONFIG, TENSORS = "adapter_config.json", "adapters.safetensors"

__all__ = ["BARE", "CONFIG", "MIXTURES", "TENSORS", "read", "write"]
