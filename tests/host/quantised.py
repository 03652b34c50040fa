"""Tiny models, quantised by the real libraries where they are installed."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from commonweight.host import weights

IDS = torch.randint(0, 64, (2, 6), generator=torch.Generator().manual_seed(1))
SITE = "model.layers.0.self_attn.q_proj"


def llama(seed: int = 0, **more: Any) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "tie_word_embeddings": False}
    return LlamaForCausalLM(LlamaConfig(**{**sizes, **heads, **more})).eval()


def replaced(model: nn.Module, make: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    """Every linear layer of the blocks in another form."""
    for name, module in [*model.named_modules()]:
        if isinstance(module, nn.Linear) and "layers" in name:
            model.set_submodule(name, make(module))
    return model.eval()


def _bitsandbytes(**options: Any) -> Callable[[nn.Linear], nn.Module]:
    def make(old: nn.Linear) -> nn.Module:
        import bitsandbytes as bnb

        w, size = old.weight.data, (old.in_features, old.out_features)
        if options.get("bits") == 8:
            new = bnb.nn.Linear8bitLt(*size, bias=False, has_fp16_weights=False)
            new.weight = bnb.nn.Int8Params(w, requires_grad=False)
            return new.to("cpu")
        new = bnb.nn.Linear4bit(*size, bias=False, compute_dtype=torch.float32, **options)
        new.weight = bnb.nn.Params4bit(w, requires_grad=False, module=new, **options)
        return new.to("cpu")

    return make


def _hqq(old: nn.Linear) -> nn.Module:
    from hqq.core.quantize import BaseQuantizeConfig, HQQLinear

    how = BaseQuantizeConfig(nbits=4, group_size=32)
    return HQQLinear(old, how, compute_dtype=torch.float32, device="cpu", del_orig=False)


def _gptq(old: nn.Linear) -> nn.Module:
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear

    size = {"in_features": old.in_features, "out_features": old.out_features, "bias": False}
    new = TorchLinear(bits=4, group_size=32, sym=True, desc_act=False, pack_dtype=torch.int32, **size)
    scale = old.weight.data.view(old.out_features, -1, 32).abs().amax(-1) / 7
    new.pack(old, scale, torch.full_like(scale, 8), torch.arange(old.in_features) // 32)
    new.post_init()
    return new.eval()


def _each(make: Callable[[nn.Linear], nn.Module]) -> Callable[[nn.Module], nn.Module]:
    return lambda model: replaced(model, make)


def _torchao(config: str, **options: Any) -> Callable[[nn.Module], nn.Module]:
    def change(model: nn.Module) -> nn.Module:
        import torchao.quantization as ao

        chosen = {k: getattr(torch, v) if isinstance(v, str) else v for k, v in options.items()}
        inside = lambda m, name: isinstance(m, nn.Linear) and "layers" in name  # noqa: E731
        ao.quantize_(model, getattr(ao, config)(**chosen), filter_fn=inside)
        return model.eval()

    return change


def _quanto(kind: str) -> Callable[[nn.Module], nn.Module]:
    def change(model: nn.Module) -> nn.Module:
        from optimum import quanto

        quanto.quantize(model, weights=getattr(quanto, kind), exclude=["lm_head"])
        quanto.freeze(model)
        return model.eval()

    return change


def _compressed(bits: int, group: int | None, form: str, inputs: bool = False) -> Callable[[nn.Module], nn.Module]:
    def change(model: nn.Module) -> nn.Module:
        from compressed_tensors.compressors import ModelCompressor
        from compressed_tensors.quantization import (
            QuantizationArgs,
            QuantizationConfig,
            QuantizationScheme,
            apply_quantization_config,
        )

        strategy = {"strategy": "group", "group_size": group} if group else {"strategy": "channel"}
        about = QuantizationArgs(num_bits=bits, type="int", symmetric=True, **strategy)  # type: ignore[arg-type]
        act = QuantizationArgs(num_bits=8, type="int", symmetric=True, strategy="token", dynamic=True)  # type: ignore[arg-type]
        scheme = QuantizationScheme(targets=["Linear"], weights=about, input_activations=act if inputs else None)
        how = QuantizationConfig(
            config_groups={"g": scheme}, ignore=["lm_head"], format=form, quantization_status="frozen"  # type: ignore[arg-type]
        )  # fmt: skip
        apply_quantization_config(model, how)
        for module in model.modules():
            if hasattr(module, "quantization_scheme"):
                w = module.weight.data.view(module.weight.shape[0], -1, group or module.weight.shape[1])  # type: ignore
                module.weight_scale.data = w.abs().amax(-1) / (2 ** (bits - 1) - 1)  # type: ignore[union-attr]
        ModelCompressor.from_pretrained_model(model).compress_model(model)
        return model.eval()

    return change


INTS = {"int4": "Int4", "int8": "Int8"}
KINDS: dict[str, tuple[str, Callable[[nn.Module], nn.Module]]] = {  # name -> (package, what it does to a model)
    "bitsandbytes-nf4": ("bitsandbytes", _each(_bitsandbytes(quant_type="nf4", compress_statistics=False))),
    "bitsandbytes-nf4-double": ("bitsandbytes", _each(_bitsandbytes(quant_type="nf4", compress_statistics=True))),
    "bitsandbytes-fp4": ("bitsandbytes", _each(_bitsandbytes(quant_type="fp4", compress_statistics=False))),
    "bitsandbytes-int8": ("bitsandbytes", _each(_bitsandbytes(bits=8))),
    "torchao-int8": ("torchao", _torchao("Int8WeightOnlyConfig")),
    "torchao-int4": ("torchao", _torchao("IntxWeightOnlyConfig", weight_dtype="int4")),
    "torchao-float8": ("torchao", _torchao("Float8WeightOnlyConfig")),
    "torchao-int8-dynamic": ("torchao", _torchao("Int8DynamicActivationInt8WeightConfig")),
    "torchao-int4-dynamic": ("torchao", _torchao("Int8DynamicActivationIntxWeightConfig", weight_dtype="int4")),
    "quanto-int8": ("optimum.quanto", _quanto("qint8")),
    "quanto-int4": ("optimum.quanto", _quanto("qint4")),
    "hqq": ("hqq", _each(_hqq)),
    "gptq": ("gptqmodel", _each(_gptq)),
    "compressed-w4": ("compressed_tensors", _compressed(4, 32, "pack-quantized")),
    "compressed-w8": ("compressed_tensors", _compressed(8, None, "int-quantized")),
    "compressed-w8a8": ("compressed_tensors", _compressed(8, None, "int-quantized", inputs=True)),
}


def there(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:
        return False


def here(kind: str) -> Any:
    """The kind as a parameter of a test, skipped where its library is not installed."""
    missing = not there(KINDS[kind][0])
    mark = pytest.mark.skipif(missing, reason=f"{KINDS[kind][0]} is not installed")
    return pytest.param(kind, marks=mark)


def quantised(kind: str, seed: int = 0) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        logging.disable(logging.WARNING)
        try:
            return KINDS[kind][1](llama(seed))
        finally:
            logging.disable(logging.NOTSET)


def in_float(model: nn.Module) -> nn.Module:
    """An ordinary model with the numbers that the packed layers stand for."""
    plain = llama()
    for name, module in plain.named_modules():
        if isinstance(module, nn.Linear):
            module.weight.data = weights.dense(model.get_submodule(name)).float().clone()
    return plain
