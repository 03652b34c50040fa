"""Linear layers, whatever their layout and storage."""

from __future__ import annotations

import re
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...core import Site
from ..weights import composed, packed_whole, plain, stored, widths
from .found import Found, Whole
from .physical import Physical, by_module, plain_class
from .roles import role


def find(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    if (found := shape(module)) is None:
        return []
    out, inp, transposed = found
    site = Site(name, out, inp, _kind(name), role(name), isinstance(stored(module, "bias"), Tensor))
    at = Physical(name, module, "linear", transposed)
    if isinstance(module, nn.Linear) and not composed(module) and _otherwise(module):
        at.forms = "none"
    return [Found(at, site, whole.inside(name))]


_OTHERWISE: WeakKeyDictionary[type, bool] = WeakKeyDictionary()


def _otherwise(module: nn.Linear) -> bool:
    """Whether a layer with a forward of its own gives something else than its weight's product with the input, as
    layers in groups do (DeepSeek V4), or those that round. Tried once for each class, in float32."""
    kind, w = plain_class(module), module._parameters.get("weight")
    if kind.forward is nn.Linear.forward or packed_whole(module):
        return False
    if w is None or not plain(w) or tuple(w.shape) != widths(module):
        return False
    if kind not in _OTHERWISE:
        with torch.no_grad():
            bias: Any = module._parameters.get("bias")
            x, w = torch.linspace(-1, 1, 2 * w.shape[1], device=w.device).view(1, 2, -1), w.float()
            b = bias if bias is None else bias.float()
            want = F.linear(x, w, b)
            try:
                y = by_module(module, x, w, b)
            except (RuntimeError, ValueError, TypeError, IndexError, AttributeError):  # it wants another input
                y = None
            fits = isinstance(y, Tensor) and y.shape == want.shape
            _OTHERWISE[kind] = not fits or not torch.allclose(torch.as_tensor(y).float(), want, rtol=1e-3, atol=1e-4)
    return _OTHERWISE[kind]


def _kind(name: str) -> str:
    """Of a linear layer by its name: those of a mixture are experts and routers."""
    around, _, within = name.rpartition(".experts.")
    if around:  # whose gates are those of its layers
        return "router" if re.match(r"router\b", within) else "expert"
    return "router" if re.search(r"(\.router\b|\.gate(\.wg)?$|shared_expert_gate$)", name) else "linear"


def shape(module: Any) -> tuple[int, int, bool] | None:
    """(out, inp, transposed) of a layer that says its widths as linear ones do, packed ones too, else None."""
    if isinstance(module, nn.Linear):
        return module.out_features, module.in_features, False
    if any(k.__name__ == "Conv1D" for k in type(module).__mro__) and isinstance(w := stored(module), Tensor):
        return w.shape[1], w.shape[0], True
    if packed_whole(module):
        return (*widths(module), False)  # type: ignore[misc]
    if (found := widths(module)) is None or any(widths(m) for m in module.modules() if m is not module):
        return None
    own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
    own += [v for v in vars(module).values() if isinstance(v, Tensor)]
    return (*found, False) if own and all(t.dim() < 3 for t in own) else None
