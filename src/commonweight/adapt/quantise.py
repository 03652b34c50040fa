"""A base quantised as it is loaded, by transformers and the library that has the format."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from ..core import CommonweightError, unknown
from .names import QUANTISED

_LIBRARIES = {"torchao": "torchao", "quanto": "optimum-quanto"}
_MODULES = {"optimum-quanto": "optimum.quanto"}


def configuration(form: str, dtype: torch.dtype) -> Any:
    """What ``from_pretrained`` is given as ``quantization_config``. dtype: what the layers compute in.

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

    if library == "torchao":
        return TorchAoConfig(_torchao(width))
    if library == "optimum-quanto":
        return QuantoConfig(weights=width)
    if form == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type=family, bnb_4bit_use_double_quant=width == "double",
        bnb_4bit_compute_dtype=dtype,
    )  # fmt: skip


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def _torchao(width: str) -> Any:
    import torchao.quantization as ao  # pyright: ignore[reportMissingImports]

    if width == "int4":  # runs on every device; torchao's faster layouts of 4 bits want a GPU
        return ao.IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=ao.PerGroup(32))  # pyright: ignore
    return ao.Int8WeightOnlyConfig() if width == "int8" else ao.Float8WeightOnlyConfig()
