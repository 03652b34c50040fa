"""Liger's kernels in a base: norms, rotary embeddings and gated layers in one kernel each, on a GPU."""

from __future__ import annotations

import inspect
from importlib.util import find_spec
from typing import Any

from ..core import CommonweightError

_EXPERTS = "num_experts", "num_local_experts", "n_routed_experts"


def check() -> None:
    """Raises: CommonweightError where the library is missing."""
    if find_spec("liger_kernel") is None:
        raise CommonweightError("liger needs Liger's kernels: pip install liger-kernel")


def patch(model: Any, device: str) -> Any:
    """The model with Liger's kernels, all but those of losses: here the loss is on the scored tokens alone.

    Call it before the host is made. Raises: CommonweightError without the library, off a GPU, and for a model that
    Liger does not know.
    """
    check()
    if not device.startswith("cuda"):
        raise CommonweightError(f"liger: its kernels run on a GPU, and the model is on {device!r}; leave it out")
    from liger_kernel.transformers import monkey_patch

    kind = getattr(model.config, "model_type", "")
    apply = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.get(kind)
    if apply is None:
        known = ", ".join(sorted(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN))
        raise CommonweightError(f"liger has no kernels for {kind}; it knows {known}")
    without = {"cross_entropy": False, "fused_linear_cross_entropy": False}
    if any(getattr(model.config, k, None) for k in _EXPERTS):  # its kernel of experts reads their weights past a host
        without["swiglu"] = False
    takes = inspect.signature(apply).parameters
    apply(model=model, **{k: v for k, v in without.items() if k in takes})
    return model
