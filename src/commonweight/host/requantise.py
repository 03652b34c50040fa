"""A changed weight in the form in which a layer of the base is packed, by the layer's own library."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError
from .packs import four_bit
from .unpack import compressor, own_tensors
from .weights import stored


def requantised(module: nn.Module, weight: Tensor, where: str) -> dict[str, Tensor]:
    """{key behind the layer's name: tensor} as the layer's own state dict has it, for this weight (d_out, d_in).

    Cost: one packing of the weight. Raises: CommonweightError for formats that want calibration data or are only read.
    """
    w = stored(module)
    with torch.no_grad():
        for form in (_four_bit, _eight_bit, _compressed, _hqq, _quanto, _torchao):
            if (found := form(module, w, weight)) is not None:
                return found
    raise CommonweightError(
        f"{where}: a weight cannot be packed again as {_name(module, w)} here: the format is made from calibration "
        "data or by another tool. Take merged(name), in floating point, and quantise that with the format's own tool"
    )


def of_experts(module: nn.Module, slot: str, weight: Tensor, where: str) -> dict[str, Tensor]:
    """As `requantised`, {key behind the module's name: tensor}, of experts in one tensor, in the module's layout."""
    state = four_bit(module, slot)
    if state is None:
        raise CommonweightError(
            f"{where}: packed experts ({type(module).__name__}) cannot be packed again here; take "
            "merged(name), in floating point, and quantise that with the format's own tool"
        )
    with torch.no_grad():
        return _codes(slot, weight, state, state.dtype, torch.uint8)


def _name(module: nn.Module, w: Any) -> str:
    kind = type(w) if isinstance(w, Tensor) and type(w) not in (nn.Parameter, Tensor) else type(module)
    return f"{kind.__module__.split('.')[0]}'s {kind.__name__}"


def _four_bit(module: nn.Module, w: Any, weight: Tensor) -> dict[str, Tensor] | None:
    state: Any = getattr(w, "quant_state", None)
    if state is None:
        return None
    return _codes("weight", weight, state, getattr(state, "original_dtype", None) or state.dtype, w.dtype)


def _codes(key: str, weight: Tensor, state: Any, dtype: torch.dtype, storage: torch.dtype) -> dict[str, Tensor]:
    from bitsandbytes.functional import quantize_4bit

    codes, about = quantize_4bit(
        weight.to(dtype).contiguous(), blocksize=state.blocksize, quant_type=state.quant_type,
        compress_statistics=bool(state.nested), quant_storage=storage,
    )  # fmt: skip
    return {key: codes, **{f"{key}.{k}": v for k, v in about.as_dict(packed=True).items()}}


def _eight_bit(module: nn.Module, w: Any, weight: Tensor) -> dict[str, Tensor] | None:
    if not hasattr(w, "SCB") or w.dtype is not torch.int8:
        return None
    from bitsandbytes.functional import int8_vectorwise_quant

    codes, scale, _ = int8_vectorwise_quant(weight.half())
    return {"weight": codes, "SCB": scale, "weight_format": torch.tensor(0, dtype=torch.uint8)}


def _compressed(module: nn.Module, w: Any, weight: Tensor) -> dict[str, Tensor] | None:
    """With the scales that the layer has: numbers beyond them are cut off."""
    scheme: Any = getattr(module, "quantization_scheme", None)
    if scheme is None:
        return None
    held = {k: t for k, t in own_tensors(module).items() if k != "bias"}
    return compressor(module, scheme).compress({**held, "weight": weight.to(w.dtype)}, scheme)


def _plain(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    return layer


def _hqq(module: nn.Module, w: Any, weight: Tensor) -> dict[str, Tensor] | None:
    if type(module).__name__ != "HQQLinear":
        return None
    old: Any = module
    how = {**deepcopy(old.quant_config), "offload_meta": old.offload_meta}  # which making a layer takes out
    new = type(old)(_plain(weight), how, compute_dtype=old.compute_dtype, device=str(old.device))
    return {k: v for k, v in new.state_dict().items() if k != "bias"}


def _quanto(module: nn.Module, w: Any, weight: Tensor) -> dict[str, Tensor] | None:
    if not type(w).__module__.startswith("optimum.quanto"):
        return None
    from optimum.quanto import QLinear

    new = QLinear.from_module(_plain(weight.to(w.dtype)), weights=w.qtype)
    new.freeze()
    return {k: v for k, v in new.state_dict().items() if k.startswith("weight")}


def _torchao(module: nn.Module, w: Any, weight: Tensor) -> dict[str, Tensor] | None:
    if not type(w).__module__.startswith("torchao"):
        return None
    config = _config_of(w)
    if config is None:
        return None
    from torchao.quantization import quantize_

    new = nn.Sequential(_plain(weight.to(w.dtype)))
    quantize_(new, config)
    return {"weight": new[0].weight.detach()}  # type: ignore[union-attr,dict-item]


def _config_of(w: Any) -> Any:
    """The configuration that makes a tensor like this one; None where it does not tell."""
    import torchao.quantization as ao

    kind, block, acts = type(w).__name__, getattr(w, "block_size", None), getattr(w, "act_quant_kwargs", None)
    if kind == "Int8Tensor":
        return ao.Int8WeightOnlyConfig() if acts is None else ao.Int8DynamicActivationInt8WeightConfig()
    if kind == "Float8Tensor" and acts is None:
        return ao.Float8WeightOnlyConfig()
    if kind == "Int4Tensor" and block:
        return ao.Int4WeightOnlyConfig(group_size=block[-1])
    if kind == "IntxUnpackedToInt8Tensor" and block:
        whole = block[-1] == w.shape[-1]
        width = ao.PerAxis(0) if whole else ao.PerGroup(block[-1])
        if getattr(w, "activation_quantization", None) is None:
            return ao.IntxWeightOnlyConfig(weight_dtype=w.target_dtype, granularity=width)
        return ao.Int8DynamicActivationIntxWeightConfig(weight_dtype=w.target_dtype, weight_granularity=width)
    return None
