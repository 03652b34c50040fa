"""Fused experts in bitsandbytes' 4 bits as they are loaded: transformers 5.23 packs linear layers alone, and on a CPU
those too that its kernel then computes wrongly. Imports transformers."""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn.parametrize import replace_parameter_4bit
from torch import Tensor, nn
from transformers.integrations.bitsandbytes import Bnb4bitQuantize
from transformers.pytorch_utils import Conv1D
from transformers.quantizers.auto import AUTO_QUANTIZER_MAPPING, register_quantizer
from transformers.quantizers.quantizer_bnb_4bit import Bnb4BitHfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationMethod

from ..host.packs import SLOTS, is_experts, runs

_FLOATS = torch.float32, torch.bfloat16, torch.float16
_NAME = "commonweight_bitsandbytes_4bit"


def with_experts(config: Any) -> Any:
    """A BitsAndBytesConfig with whose help one model is loaded; then it is an ordinary one again."""
    config.quant_method = _NAME
    return config


class Quantizer(Bnb4BitHfQuantizer):
    """Each projection's experts are packed as soon as they are read, so that one at a time is in floating point."""

    def _process_model_before_weight_loading(self, model: Any, device_map: Any = None, **kwargs: Any) -> Any:
        if not self.pre_quantized and isinstance(device_map, dict) and {*map(str, device_map.values())} == {"cpu"}:
            how = self.quantization_config
            if left := [n for n, m in model.named_modules() if _block(_inputs(m)) != 64]:
                kept = self.get_modules_to_not_convert(model, how.llm_int8_skip_modules)
                how.llm_int8_skip_modules = [*kept, *left]  # which a copy that is saved says too
        return super()._process_model_before_weight_loading(model, device_map=device_map, **kwargs)

    def param_needs_quantization(self, model: Any, param_name: str, **kwargs: Any) -> bool:
        return self.of_experts(model, param_name) or super().param_needs_quantization(model, param_name, **kwargs)

    def of_experts(self, model: Any, name: str) -> bool:
        """Whether it holds experts that can be packed, with a forward that is known: others could not be read then."""
        module, slot = get_module_from_name(model, name)
        where = name.rpartition(".")[0]
        kept = getattr(self, "modules_to_not_convert", None)
        own = module._parameters.get(slot)
        if slot not in SLOTS or own is None or own.dim() != 3 or own.dtype not in _FLOATS or not _block(own.shape[-1]):
            return False
        return is_experts(where, module) and runs(module) and should_convert_module(where, kept)

    def get_quantize_ops(self) -> Any:
        return Quantize(self)

    def _process_model_after_weight_loading(self, model: Any, **kwargs: Any) -> Any:
        self.quantization_config.quant_method = QuantizationMethod.BITS_AND_BYTES
        model.quantization_method = QuantizationMethod.BITS_AND_BYTES
        return super()._process_model_after_weight_loading(model, **kwargs)


class Quantize(Bnb4bitQuantize):
    def convert(
        self, input_dict: dict[str, Any], full_layer_name: str | None = None, model: Any = None,
        missing_keys: Any = None, **kwargs: Any,
    ) -> dict[str, Any]:  # fmt: skip
        out: dict[str, Any] = {}
        for name in [*input_dict]:
            value = input_dict.pop(name)
            value = value[0] if isinstance(value, list) else value
            if not self.hf_quantizer.of_experts(model, name):
                out |= super().convert({name: value}, full_layer_name, model, **kwargs)
                continue
            self._pack(*get_module_from_name(model, name), value)
            if missing_keys is not None:
                missing_keys.discard(name)
        return out

    def _pack(self, module: nn.Module, slot: str, value: Tensor) -> None:
        how = self.hf_quantizer.quantization_config
        module._parameters[slot] = nn.Parameter(value, requires_grad=False)
        replace_parameter_4bit(
            module, slot, compress_statistics=how.bnb_4bit_use_double_quant, quant_type=how.bnb_4bit_quant_type,
            blocksize=_block(value.shape[-1]),
        )  # fmt: skip
        module._is_hf_initialized = True  # type: ignore[assignment]


def _inputs(module: nn.Module) -> int:
    """Of a linear layer that transformers would pack; 0 of others."""
    if type(module) is nn.Linear:
        return module.in_features
    return len(module.weight) if isinstance(module, Conv1D) else 0


def _block(width: int) -> int | None:
    """Numbers with one scale, so that each row begins a block of its own: the kernel for CPUs (bitsandbytes 0.50.2)
    takes it that it does, and gives wrong numbers of others. None where no size that the library has is that."""
    return next((n for n in (64, 32) if width % n == 0), None)


if _NAME not in AUTO_QUANTIZER_MAPPING:
    register_quantizer(_NAME)(Quantizer)
