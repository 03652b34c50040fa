"""Linear layers, whatever their layout and storage."""

from __future__ import annotations

import re
from typing import Any

from torch import Tensor, nn

from ...core import Site
from ..weights import packed_whole, stored, widths
from .found import Found, Whole
from .physical import Physical
from .roles import role


def find(name: str, module: nn.Module, whole: Whole) -> list[Found]:
    if (found := shape(module)) is None:
        return []
    out, inp, transposed = found
    site = Site(name, out, inp, _kind(name), role(name), isinstance(stored(module, "bias"), Tensor))
    return [Found(Physical(name, module, "linear", transposed), site, whole.inside(name))]


def _kind(name: str) -> str:
    """Of a linear layer by its name: those of a mixture are experts and routers."""
    if ".experts." in name:
        return "expert"
    return "router" if re.search(r"(\.router\b|\.gate$|shared_expert_gate$)", name) else "linear"


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
