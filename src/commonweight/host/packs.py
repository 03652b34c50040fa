"""Experts that libraries pack: all of a projection in codes and scales, read expert by expert.

As `unpack` for layers: by the library's own function if it has one, else by its published layout. Tried against
transformers 5.23.0 (fine-grained FP8 and FP4, mxfp4, GGUF, FBGEMM), bitsandbytes 0.50.2 and torchao 0.18.0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .unpack import in_blocks

Read = Callable[[int], Tensor]  # expert -> its weight (out, inp) in float32
_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_FP4 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
SLOTS = "gate_up_proj", "up_proj", "down_proj"


class Pack(NamedTuple):
    """Experts of one projection. shape: (E, out, inp). turned: whether the class that is not packed has (E, inp, out).

    open: makes what reads single experts; what has to be done once for all of them, such as undoing an order of a
    kernel, is done there. own: (expert, x) -> the library's own product, where that also rounds x; else None.
    backward: whether the module's own forward hands gradients to its input. kind: the class of the module.
    """

    shape: tuple[int, int, int]
    turned: bool
    open: Callable[[], Read]
    own: Callable[[int, Tensor], Tensor] | None = None
    backward: bool = True
    kind: str = ""


def parametrizations(module: nn.Module) -> dict[str, Any]:
    """Attribute -> what torch.nn.utils.parametrize makes it of; empty where it makes none."""
    found: Any = getattr(module, "parametrizations", {})
    return dict(found)


def slots(module: nn.Module) -> list[str]:
    """Attributes that hold experts of a projection, packed or not; scales are none."""
    parametrised = list(parametrizations(module))
    held = [n for n, p in module._parameters.items() if p is not None and p.dim() == 3 and "scale" not in n]
    odd = [n for n in SLOTS if n not in held and n in module.__dict__] if named_so(module, "Mxfp4GptOssExperts") else []
    found = [*dict.fromkeys([*held, *odd, *(n for n in parametrised if n in SLOTS)])]
    if parametrised:  # in whatever order they were packed
        found.sort(key=lambda n: SLOTS.index(n) if n in SLOTS else len(SLOTS))
    return found


def is_experts(name: str, module: nn.Module) -> bool:
    """Whether a module holds experts of its own, as its name says or, where a projection is one, its class (JetMoe)."""
    plain = getattr(type(module), "commonweight_plain", type(module))
    return "expert" in name.rpartition(".")[2].lower() or plain.__name__.endswith("Experts")


def flat(module: nn.Module) -> bool:
    """Whether the module calls experts that lie in matrices of another one, ``mlp``: DBRX."""
    return named_so(module, "DbrxExperts")


def runs(module: nn.Module) -> bool:
    """Whether the forward of packed experts is known, so that it can be run with other weights."""
    stated = all(hasattr(module, n) for n in ("has_gate", "has_bias", "is_transposed", "_apply_gate", "num_experts"))
    known = ("FP8Experts", "Mxfp4GptOssExperts", "GgufExperts", "FbgemmFp8Llama4TextExperts", "Llama4TextExperts")
    return (stated or named_so(module, *known)) and not getattr(module, "_is_expert_parallel", False)


def packed_in(module: nn.Module, slot: str) -> Pack | None:
    """How the experts of this attribute are packed; None for plain ones, and for a form that is not known here."""
    for known in (_fine_grained, _mxfp4, _gguf, _fbgemm, _four_bit, _parametrised, _by_itself):
        if (found := known(module, slot)) is not None:
            return found._replace(kind=type(module).__name__)
    return None


def named_so(module: Any, *kinds: str) -> bool:
    return any(k.__name__ in kinds for k in type(module).__mro__)


def _fine_grained(module: Any, slot: str) -> Pack | None:
    """FP8 of DeepSeek as transformers holds it, (E, out, inp) and a scale for each block; FP4 has two codes a byte and
    a scale for 32 of a row. A half of gate_up_proj begins a block of its own, whatever its length."""
    codes, scale = module._parameters.get(slot), module._parameters.get(f"{slot}_scale_inv")
    if codes is None or scale is None or codes.element_size() != 1 or codes.dim() != 3 or scale.dim() != 3:
        return None
    halved = codes.dtype in (torch.int8, getattr(torch, "float4_e2m1fn_x2", None))
    E, out, inp = codes.shape[0], codes.shape[1], codes.shape[2] * (2 if halved else 1)
    size = (1, 32) if halved else getattr(module, "block_size", None)
    parts = 2 if slot == "gate_up_proj" else 1
    if codes.dtype is torch.uint8 or _rows(scale.shape[1], out, size, parts) is None:
        return None

    def read(e: int) -> Tensor:
        w = fp4(codes.data[e]) if halved else codes.data[e].float()
        rows = _rows(scale.shape[1], out, size, parts)
        wide = _numbers(scale.data[e])[rows]
        return w * (wide if size is None else in_blocks(torch.ones_like(w), wide, (1, size[1])))

    def own(e: int, x: Tensor) -> Tensor:
        at = getattr(module, f"{slot}_activation_scale", None)
        return module.linear(x, codes[e], scale[e], activation_scale=None if at is None else at[e])

    return Pack((E, out, inp), False, lambda: read, own if hasattr(module, "linear") else None, not halved)


def _rows(have: int, out: int, size: Any, parts: int) -> Tensor | None:
    """Of each row of a weight, the row of its scale; None where the scales fit in no known way."""
    block = out // parts if size is None else size[0]
    half = out // parts
    if have == 1:
        return torch.zeros(out, dtype=torch.long)
    if have == parts * -(-half // block) and out % parts == 0:
        at = torch.arange(half) // block
        return torch.cat([at + i * -(-half // block) for i in range(parts)])
    return torch.arange(out) // block if have == -(-out // block) else None


def _numbers(scale: Tensor) -> Tensor:
    """Scales in a byte are powers of two."""
    return (scale.float() - 127).exp2() if scale.dtype is torch.uint8 else scale.float()


def fp4(codes: Tensor) -> Tensor:
    """Two values a byte, the first in the lower half: (..., n) -> (..., 2 n)."""
    held = codes.contiguous().view(torch.uint8)
    table = torch.tensor(_FP4, device=codes.device)
    return table[torch.stack([held & 15, held >> 4], -1).flatten(-2).long()]


def _mxfp4(module: Any, slot: str) -> Pack | None:
    """gpt-oss: what kernels hold is laid back as in the checkpoint, blocks (E, out, inp / 32, 16) and scales
    (E, out, inp / 32), as transformers does to save it."""
    if not named_so(module, "Mxfp4GptOssExperts") or slot not in ("gate_up_proj", "down_proj"):
        return None
    if slot in module._parameters or getattr(module, f"{slot}_precision_config", None) is None:
        return None  # nothing was loaded
    wide, hidden = module.intermediate_size, module.hidden_size
    shape = (2 * wide, hidden) if slot == "gate_up_proj" else (hidden, wide)

    def open() -> Read:
        codes, scale = getattr(module, slot).storage, getattr(module, f"{slot}_precision_config").weight_scale.storage
        scales = scale.layout.unswizzle_data(scale.data).transpose(-1, -2)
        blocks = codes.layout.unswizzle_data(codes.data).transpose(-1, -2).reshape(*scales.shape, -1)
        return lambda e: (fp4(blocks[e]) * (scales[e].float() - 127).exp2()[..., None]).flatten(1)

    return Pack((module.num_experts, *shape), True, open, None, False)


def _gguf(module: Any, slot: str) -> Pack | None:
    """Blocks of a GGUF file, by transformers."""
    if not named_so(module, "GgufExperts"):
        return None
    from transformers.integrations.gguf.kernels import dequantize_blocks

    blocks, kind = module._parameters[slot], module.down_type if slot == "down_proj" else module.gate_up_type
    wide, hidden = module.intermediate_dim, module.hidden_dim
    out, inp = (hidden, wide) if slot == "down_proj" else (2 * wide, hidden)
    read: Read = lambda e: dequantize_blocks(blocks.data[e], kind, out, inp, torch.float32)  # noqa: E731
    return Pack((module.num_experts, out, inp), False, lambda: read, None, False)


def _fbgemm(module: Any, slot: str) -> Pack | None:
    """FP8 of Llama 4, (E, inp, out) with a scale for each output."""
    codes, scale = module._parameters.get(slot), module._parameters.get(f"{slot}_scale")
    if not named_so(module, "FbgemmFp8Llama4TextExperts") or codes is None or scale is None:
        return None
    E, inp, out = codes.shape
    read: Read = lambda e: codes.data[e].float().T * scale.data[e].float().reshape(-1, 1)  # noqa: E731
    return Pack((E, out, inp), True, lambda: read, None, False)


def four_bit(module: Any, slot: str) -> Any:
    """The state of what bitsandbytes' replace_parameter_4bit has packed; None for another."""
    made = [*parametrizations(module).get(slot, ())]
    return getattr(made[0], "quant_state", None) if len(made) == 1 else None


def _four_bit(module: Any, slot: str) -> Pack | None:
    """bitsandbytes, where each row begins a block of its own. Others are read all at once by `_parametrised`: a CPU's
    kernel (0.50.2) takes it that they do, and gives other numbers than were packed."""
    state = four_bit(module, slot)
    if state is None or len(state.shape) != 3 or module.parametrizations[slot].original.dtype is not torch.uint8:
        return None
    from bitsandbytes import functional as bnb

    E, a, b = state.shape
    turned, size = _turned(module), state.blocksize
    if b % size:
        return None

    def open() -> Read:
        scales = state.absmax
        if state.nested:
            scales = bnb.dequantize_blockwise(scales, state.state2).float() + state.offset
        codes, scales = module.parametrizations[slot].original.data.reshape(E, -1, 1), scales.reshape(E, -1)
        about = {"shape": (a, b), "dtype": state.dtype, "blocksize": size, "code": state.code}

        def read(e: int) -> Tensor:
            one = bnb.QuantState(scales[e].contiguous(), quant_type=state.quant_type, **about)
            w = bnb.dequantize_4bit(codes[e], one)
            return (w.T if turned else w).float()

        return read

    return Pack((E, b, a) if turned else (E, a, b), turned, open)


def _turned(module: Any) -> bool:
    return bool(getattr(module, "is_transposed", False)) or named_so(module, "Llama4TextExperts")


def _parametrised(module: Any, slot: str) -> Pack | None:
    """Parameters that torch makes anew when they are asked for."""
    if slot not in getattr(module, "parametrizations", ()):
        return None
    return _whole(module, slot, lambda: getattr(module, slot).detach())


def _by_itself(module: Any, slot: str) -> Pack | None:
    """A tensor that can dequantise itself: torchao. One that rounds its input too would answer otherwise."""
    w = module._parameters.get(slot)
    if w is None or type(w) in (nn.Parameter, Tensor) or not callable(getattr(w, "dequantize", None)):
        return None
    if any(getattr(w, n, None) is not None for n in ("act_quant_kwargs", "activation_quantization")):
        return None
    return _whole(module, slot, lambda: w.data.dequantize())


def _whole(module: Any, slot: str, read: Callable[[], Tensor]) -> Pack | None:
    turned = _turned(module)
    with torch.no_grad():
        found = read()
    if found.dim() != 3 or found.dtype not in _FLOATS:
        return None

    def open() -> Read:
        with torch.no_grad():
            w = read()
        return lambda e: (w[e].T if turned else w[e]).float()

    E, a, b = found.shape
    return Pack((E, b, a) if turned else (E, a, b), turned, open)
