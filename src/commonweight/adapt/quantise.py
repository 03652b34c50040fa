"""A base quantised as it is loaded, by transformers and the library that has the format."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ..builder.load import config_of
from ..core import CommonweightError, unknown
from .names import QUANTISED

_LIBRARIES = {"torchao": "torchao", "quanto": "optimum-quanto"}
_MODULES = {"optimum-quanto": "optimum.quanto"}


def configuration(form: str, dtype: torch.dtype, model: str | Path | None = None) -> Any:
    """What ``from_pretrained`` is given as ``quantization_config``. dtype: what the layers compute in. model: whose
    layers `_READ` says are left as they are.

    Raises: CommonweightError for an unknown form, and where its library is missing.
    """
    if form not in QUANTISED:
        raise unknown("quantize", form, QUANTISED)
    family, _, width = form.partition("-")
    library = _LIBRARIES.get(family, "bitsandbytes")
    if not _there(_MODULES.get(library, library)):
        raise CommonweightError(
            f"quantize={form!r} needs {library}, which is not installed: pip install 'commonweight[quantize]'"
        )
    from transformers import BitsAndBytesConfig, QuantoConfig, TorchAoConfig

    left = _left(model)
    if library == "torchao":
        return TorchAoConfig(_torchao(width))
    if library == "optimum-quanto":
        return QuantoConfig(weights=width, modules_to_not_convert=left)
    if form == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=left)
    config = BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=family, bnb_4bit_use_double_quant=width == "double",
        bnb_4bit_compute_dtype=dtype, llm_int8_skip_modules=left,
    )  # fmt: skip
    try:
        from .expert_packs import with_experts
    except ImportError:  # older libraries
        return config
    return with_experts(config)


_READ = {"mamba": "dt_proj", "falcon_mamba": "dt_proj", "jamba": "dt_proj"}
"""By model_type: the layer whose weight transformers multiplies by past its module, packed or not."""


def _left(model: str | Path | None) -> list[str] | None:
    """Layers that are not packed, the head among them, as where transformers chooses; None leaves it the choice."""
    try:
        read = None if model is None else _READ.get(config_of(model).model_type)
    except (OSError, ValueError, KeyError):
        return None  # said where it is loaded
    return None if read is None else ["lm_head", read]


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _torchao(width: str) -> Any:
    import torchao.quantization as ao

    if width == "int4":  # runs on every device; torchao's faster layouts of 4 bits want a GPU
        return ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))  # pyrefly: ignore[missing-attribute]
    return ao.Int8WeightOnlyConfig() if width == "int8" else ao.Float8WeightOnlyConfig()
