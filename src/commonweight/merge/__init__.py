"""Merging models: one call a method, on state dicts, modules or safetensors; one pure function a method underneath."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core import unknown
from . import methods
from .adapters.extract import Extracted, extract
from .adapters.folders import MergedFolder, adapter_folders
from .adapters.lora import Merged, lora
from .adapters.tenants import MergedTenant, tenants
from .alignment import align, experts
from .alignment.pleas import pleas
from .call.declare import method
from .learning import ablation, dataflow, search
from .learning.evaluation import evaluate
from .learning.tuning import Tuned, tune_recipe
from .methods import *  # noqa: F403  (the methods, by the names in their own list)
from .output.folder import Result, make
from .registry import At, Beside, Method, Survey, available, get
from .statistics import Statistics, open_statistics
from .statistics.collect import collect

__all__ = [
    "At",
    "Beside",
    "Extracted",
    "Merged",
    "MergedFolder",
    "MergedTenant",
    "Method",
    "Result",
    "Statistics",
    "Survey",
    "Tuned",
    "ablation",
    "adapter_folders",
    "align",
    "available",
    "collect",
    "dataflow",
    "evaluate",
    "experts",
    "extract",
    "get",
    "lora",
    "make",
    "merge",
    "method",
    "open_statistics",
    "pleas",
    "search",
    "tenants",
    "tune_recipe",
]
__all__ += methods.__all__


def merge(name: str, models: Any, base: Any = None, **options: Any) -> dict[str, Tensor]:
    """Merges models by a method's name: ``merge("ties", [a, b], base=base)`` is ``ties([a, b], base=base)``.

    models: a list, or name -> model, of state dicts, modules, safetensors files or folders of them; of adapters and
    tenants as the models that they make: "MODEL+ADAPTER", or alone, on `base`, a PEFT LoRA folder, a tenant's file,
    "STORE:TENANT", or `host[name]`. base: the model that they were trained from, for methods, adapters
    and tenants that need it. Options besides the method's own: weights (one number, or one for each model); dtype of
    the result (the base's, else the first model's); piece (the largest number of elements to work on at a time).
    Returns: name -> tensor. Computed in float32; integer tensors are copied and must be equal in all models.
    Raises: CommonweightError naming tensor and model for shapes or names that differ, NaN or infinity,
    unknown methods and options (with the nearest name), values out of range, a number of weights that is not that of
    the models, and weights that sum to zero where a method divides by their sum.
    """
    return get(name)(models, base, **options)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(name)
    raise AttributeError(str(unknown("merge method", name, available())))
