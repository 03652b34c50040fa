"""mlx-lm's adapter folders, both ways: adapters.safetensors beside adapter_config.json (LoRA, DoRA, full)."""

from __future__ import annotations

from .names import ALIKE, BARE, MIXTURES, back_in
from .reading import read
from .writing import write

CONFIG, TENSORS = "adapter_config.json", "adapters.safetensors"

__all__ = ["ALIKE", "BARE", "CONFIG", "MIXTURES", "TENSORS", "back_in", "read", "write"]
