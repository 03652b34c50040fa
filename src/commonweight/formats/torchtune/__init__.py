"""torchtune's own adapter checkpoints (adapter_model.pt, adapter_0.pt, or the same tensors as safetensors) in."""

from __future__ import annotations

from .reading import read

__all__ = ["read"]
