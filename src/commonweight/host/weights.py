"""Reading a weight: the one place that is asked for it, however a layer may store it.

Plain tensors, shards (DTensor), weights that accelerate has put away, and what libraries pack (see `unpack`). Any other
packed layer is read through its own forward: what it answers to unit vectors are the columns of its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError
from .unpack import READERS, sampled

_FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
_WORKS = "methods on the layer's output, such as lora and mos, still work there"
_PACKERS = {  # packages whose linear layers of other classes than nn.Linear are weights that were packed
    "transformers", "hqq", "gptqmodel", "auto_gptq", "awq", "bitsandbytes", "torchao", "quanto", "optimum", "aqlm",
    "eetq", "vptq", "compressed_tensors", "auto_round", "spqr_quant", "sinq", "intel_extension_for_pytorch", "torch",
}  # fmt: skip
_PIECE = 512  # unit vectors at a time
_LEAST = 64  # and no fewer: for a few rows some layers want a kernel that is not there on every device


def stored(module: nn.Module, name: str = "weight") -> Any:
    """What the module holds under this name, past any property of its class that changes it."""
    for held in (module._parameters, module._buffers, module.__dict__):
        if name in held:
            return held[name]
    return getattr(module, name, None)


def widths(module: Any) -> tuple[int, int] | None:
    """(d_out, d_in) of a module that says them as linear layers do, whatever its class; else None."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features
    for out, inp in (("out_features", "in_features"), ("outfeatures", "infeatures")):
        if _counts(a := getattr(module, out, None)) and _counts(b := getattr(module, inp, None)):
            return a, b  # type: ignore[return-value]
    return None


def _counts(n: Any) -> bool:
    return type(n) is int and n > 0


def plain(w: Any) -> bool:
    """Whether the numbers of a tensor are the weight's, at hand and whole."""
    return type(w) in (nn.Parameter, Tensor) and w.dtype in _FLOATS and w.device.type != "meta"


def packed(module: nn.Module) -> bool:
    """Whether a linear layer computes with other numbers than a plain tensor ``weight`` (d_out, d_in) holds."""
    shape = widths(module)
    if shape is None:
        return False
    w = stored(module)
    if hasattr(w, "full_tensor") or (isinstance(w, Tensor) and w.device.type == "meta"):
        return False
    return not (plain(w) and tuple(w.shape) == shape)


def composed(module: nn.Module) -> bool:
    """Whether a layer of a shared model adds to its weight what it reads elsewhere (`builder.forms`)."""
    return getattr(module, "composed", False) is True


def unpacked(module: nn.Module) -> bool:
    """Whether compressed-tensors has unpacked it: its weight is plain, its scales are still there."""
    return getattr(module, "quantization_scheme", None) is not None and widths(module) is not None


def rounds(module: nn.Module) -> bool:
    """Whether a layer with a plain weight rounds its input (compressed-tensors): `packed` ones may too."""
    return getattr(getattr(module, "quantization_scheme", None), "input_activations", None) is not None


def known(module: nn.Module) -> bool:
    """Whether a package that packs weights made the layer."""
    return _package(module) in _PACKERS


def packed_whole(module: nn.Module) -> bool:
    """Whether it is a packed linear layer of such a package, whatever tables, scales or original layer it holds too."""
    package = _package(module)
    return package in _PACKERS - {"torch", "transformers"} and widths(module) is not None and packed(module)


def _package(module: nn.Module) -> str:
    return type(module).__module__.split(".")[0]


def dense(module: nn.Module, name: str = "weight", where: str = "", *, steady: bool = False) -> Tensor:
    """A weight or bias as numbers, in the module's own layout: the parameter itself where that is plain, else float32.

    where: the site's name, for messages. steady: to the precision that the layer keeps whatever it does to its storage
    in between, for fingerprints. Cost: nothing where it is plain, else the whole weight each time. A shard is gathered:
    every process must ask. Raises: CommonweightError for what cannot be read, with what still works there.
    """
    if name == "weight" and composed(module):
        with _gathered(module):
            return module.composed_weight().detach()  # type: ignore[operator]
    w = stored(module, name)
    if type(w) in (nn.Parameter, Tensor) and plain(w) and (name != "weight" or not packed(module)):
        return w
    with torch.no_grad():
        return _read(module, name, w, where or type(module).__name__, steady)


def sample(module: nn.Module, places: Tensor, name: str = "weight", where: str = "") -> Tensor:
    """Numbers of `dense(..., steady=True)` at these places, row after row. Cost: of bitsandbytes' layers and of plain
    ones, of these numbers; else as `dense`."""
    w = stored(module, name)
    if name == "weight" and not composed(module) and packed(module):
        with torch.no_grad():
            if (found := sampled(module, w, widths(module), places)) is not None:
                return found
    held = dense(module, name, where, steady=True).reshape(-1)
    return held[places.to(held.device)]


@contextmanager
def _gathered(module: nn.Module) -> Iterator[None]:
    """With its parameters whole where FSDP2 keeps shards of them."""
    shards = {n: p for n, p in module._parameters.items() if hasattr(p, "full_tensor")}
    module._parameters.update({n: p.full_tensor() for n, p in shards.items()})  # type: ignore[union-attr,misc]
    try:
        yield
    finally:
        module._parameters.update(shards)


def _read(module: nn.Module, name: str, w: Any, where: str, steady: bool) -> Tensor:
    if hasattr(w, "full_tensor"):
        return w.full_tensor()
    if isinstance(w, Tensor) and w.device.type == "meta":
        w = _put_away(module, name, where)
        if plain(w):
            return w
    if name != "weight":
        if isinstance(w, Tensor):
            return w
        raise CommonweightError(f"{where}: it has no {name} that can be read")
    for read in READERS:
        if (found := read(module, w, widths(module), steady)) is not None:
            return found.detach().float()
    if plain(w) and w.numel() != (n := _size(module)):
        raise CommonweightError(
            f"{where}: its weight is {tuple(w.shape)} here, {n} numbers as a whole: a part of it lies elsewhere (FSDP "
            "of version 1, DeepSpeed ZeRO-3). Use fully_shard (FSDP2), or read it within summon_full_params or "
            f"GatheredParameters; {_WORKS}"
        )
    return _probed(module, where)


def _size(module: nn.Module) -> int:
    out, inp = widths(module) or (0, 0)
    return out * inp


def _put_away(module: nn.Module, name: str, where: str) -> Tensor:
    """A weight that accelerate's hook loads for each forward."""
    hook = getattr(module, "_hf_hook", None)
    for one in getattr(hook, "hooks", None) or [hook]:
        try:
            found = one.weights_map[name]  # type: ignore[union-attr]
        except (AttributeError, TypeError, KeyError):
            continue
        if isinstance(found, Tensor) and found.device.type != "meta":
            return found
    raise CommonweightError(
        f"{where}: its {name} is on the meta device, with no numbers and no accelerate hook that would load them; load "
        "the model with its weights first"
    )


def _probed(module: nn.Module, where: str) -> Tensor:
    """The weight of a layer of unknown storage by its answers to unit vectors: d_in products in pieces.

    A layer that is not linear in its input is refused.
    """
    shape, kind = widths(module), type(module).__name__
    bad = f"{where}: its weight is packed ({kind}) and cannot be read here"
    if shape is None:
        raise CommonweightError(f"{bad}; {_WORKS}")
    out, inp = shape
    device = next((t.device for t in (*module.parameters(), *module.buffers())), torch.device("cpu"))
    forward: Callable[[Tensor], Tensor] = module.forward  # past its hooks
    why: Exception | None = None
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        try:
            x = torch.linspace(-1, 1, inp, dtype=dtype, device=device)[None]
            rows = torch.zeros(-(-(inp + 2) // _LEAST) * _LEAST, inp, dtype=dtype, device=device)
            rows[1:2], rows[2 : inp + 2] = x, torch.eye(inp, dtype=dtype, device=device)
            y = torch.cat([forward(piece).float() for piece in rows.split(_PIECE)])
            w, got = (y[2 : inp + 2] - y[0]).T, (y[1:2] - y[0])
            if tuple(w.shape) != (out, inp):
                raise ValueError(f"it answers {tuple(w.shape)}, wanted {(out, inp)}")
            want = x.float() @ w.T
        except Exception as e:
            why = why or e
            continue
        if (got - want).norm() > 0.05 * want.norm().clamp_min(1e-6):
            raise CommonweightError(f"{where}: {kind} is not linear in its input, so it has no weight; {_WORKS}")
        return w.contiguous()
    raise CommonweightError(
        f"{bad} ({str(why).splitlines()[0] if str(why) else type(why).__name__}); {_WORKS}"
    ) from why


def device_of(model: nn.Module) -> torch.device:
    """Where pools belong: where accelerate runs what it has put away, else with the first parameter."""
    parameters = [*model.parameters()]
    if any(p.device.type == "meta" for p in parameters):
        for module in model.modules():
            hook = getattr(module, "_hf_hook", None)
            for one in getattr(hook, "hooks", None) or [hook]:
                at = getattr(one, "execution_device", None)
                if at is not None and str(at) != "meta":
                    return torch.device(at)
    return next((p.device for p in parameters), torch.device("cpu"))
