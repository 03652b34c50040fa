"""Tiny mixtures whose experts are packed as libraries pack them, and the same in floating point."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from .mixtures import mixture

SLOTS = "gate_up_proj", "down_proj"


def fp8(old: Any, block: tuple[int, int] | None = (8, 16), codes: str = "fp8", scales: str = "float") -> nn.Module:
    """Fine-grained FP8 or FP4 of transformers, with random codes and scales."""
    from transformers.integrations.finegrained_fp8 import FP8Experts

    new: Any = FP8Experts(old.config, block, scale_fmt=scales, expert_dtype=codes)
    for slot in SLOTS:
        w, s = getattr(new, slot), getattr(new, f"{slot}_scale_inv")
        w.requires_grad_(False)
        if codes == "fp4":
            w.data = torch.randint(-128, 128, w.shape).to(torch.int8)
        else:
            w.data = (torch.randn(w.shape) * 50).to(torch.float8_e4m3fn)
        s.data = torch.exp2(torch.randint(-9, -6, s.shape).float()).to(s.dtype)
    return new


def mxfp4(old: Any) -> nn.Module:
    """gpt-oss: blocks and scales as a kernel holds them, turned, behind a layout that gives them back."""
    from transformers.integrations.mxfp4 import Mxfp4GptOssExperts

    sizes = {"intermediate_size": old.intermediate_size, "hidden_size": old.hidden_size, "swiglu_limit": old.limit}
    new: Any = Mxfp4GptOssExperts(SimpleNamespace(num_local_experts=old.num_experts, **sizes))
    held = lambda t: SimpleNamespace(storage=SimpleNamespace(data=t.mT, layout=_Layout()))  # noqa: E731
    for slot in SLOTS:
        E, inp, out = getattr(old, slot).shape
        del new._parameters[slot]
        setattr(new, slot, held(torch.randint(0, 256, (E, out, inp // 2)).to(torch.uint8)))
        scale = held(torch.randint(120, 126, (E, out, inp // 32)).to(torch.uint8))
        setattr(new, f"{slot}_precision_config", SimpleNamespace(weight_scale=scale))
        getattr(new, f"{slot}_bias").data = getattr(old, f"{slot}_bias").data.clone()
    return new


class _Layout:
    def unswizzle_data(self, data: Tensor) -> Tensor:
        return data


def gguf(old: Any) -> nn.Module:
    """Blocks of Q8_0: a scale of two bytes and 32 codes."""
    from transformers.integrations.gguf.utils import GgufExperts

    new: Any = GgufExperts(old.num_experts, old.hidden_dim, old.intermediate_dim, 8, 8, old.act_fn)
    for slot in SLOTS:
        E, out, inp = getattr(old, slot).shape
        scale = (torch.rand(E, out, inp // 32, 1) * 0.004).half().view(torch.uint8)
        codes = torch.randint(-128, 128, (E, out, inp // 32, 32)).to(torch.int8).view(torch.uint8)
        getattr(new, slot).data = torch.cat([scale, codes], -1).flatten(2)
    return new


def fbgemm(old: Any) -> nn.Module:
    """FP8 of Llama 4."""
    from transformers.integrations.fbgemm_fp8 import FbgemmFp8Llama4TextExperts

    sizes = {"num_local_experts": old.num_experts, "hidden_size": old.hidden_size, "hidden_act": "silu"}
    new: Any = FbgemmFp8Llama4TextExperts(SimpleNamespace(intermediate_size=old.intermediate_size, **sizes))
    for slot in SLOTS:
        w, s = getattr(new, slot), getattr(new, f"{slot}_scale")
        w.requires_grad_(False)
        w.data, s.data = (torch.randn(w.shape) * 50).to(torch.float8_e4m3fn), torch.rand(s.shape) * 0.004
    return new


def bitsandbytes(old: Any) -> nn.Module:
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    for slot in SLOTS:
        replace_parameter_4bit(old, slot, blocksize=32)
    return old


def torchao(old: Any) -> nn.Module:
    import torchao.quantization as ao

    for slot in SLOTS:
        layer = nn.Linear(1, 1, bias=False)
        layer.weight = nn.Parameter(getattr(old, slot).data, requires_grad=False)
        ao.quantize_(layer, ao.Int8WeightOnlyConfig())
        old._parameters[slot] = nn.Parameter(layer.weight.data, requires_grad=False)
    return old


PACKS: dict[str, tuple[str, Callable[[Any], nn.Module]]] = {
    "fp8": ("qwen3_moe", fp8),
    "fp8, one scale": ("qwen3_moe", lambda m: fp8(m, None)),
    "fp8, ue8m0": ("deepseek_v3", lambda m: fp8(m, (8, 8), scales="ue8m0")),
    "fp8, wide blocks": ("mixtral", lambda m: fp8(m, (128, 128))),
    "fp4": ("mixtral_32", lambda m: fp8(m, (8, 8), "fp4", "ue8m0")),
    "mxfp4": ("gpt_oss_32", mxfp4),
    "gguf": ("mixtral_32", gguf),
    "fbgemm": ("llama4", fbgemm),
}
if find_spec("bitsandbytes"):
    PACKS["bitsandbytes"] = ("qwen3_moe", bitsandbytes)
    PACKS["bitsandbytes, turned"] = ("gpt_oss", bitsandbytes)
    PACKS["bitsandbytes, spread"] = ("llama4", bitsandbytes)
if find_spec("torchao"):
    PACKS["torchao"] = ("qwen3_moe", torchao)


def packed(kind: str) -> tuple[Any, dict[str, Tensor]]:
    """(a model with packed experts, a batch of four rows)."""
    name, make = PACKS[kind]
    model, batch = mixture(name)
    for module in [*model.modules()]:
        if isinstance(module._modules.get("experts"), nn.Module):
            module.experts = make(module.experts)
            if kind == "mxfp4":
                _as_mxfp4(model, module)
    return model.eval(), batch


def _as_mxfp4(model: nn.Module, old: Any) -> None:
    from transformers.integrations.mxfp4 import Mxfp4GptOssMLP

    name = next(n for n, m in model.named_modules() if m is old)
    model.set_submodule(name, Mxfp4GptOssMLP(old.router, old.experts))
