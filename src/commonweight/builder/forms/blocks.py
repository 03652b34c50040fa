"""Blocks whose input or output is changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

if TYPE_CHECKING:
    from torch import nn


class Stepped:
    """y = x + g (block(x) - x), g (1,): a step of another length."""

    g: nn.Parameter

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        out = torch.lerp(hidden_states, y[0] if isinstance(y, tuple) else y, self.g)
        return (out, *y[1:]) if isinstance(y, tuple) else out


class MappedBlock:
    """y = x + M (block(x) - x), M (d, d)."""

    M: nn.Parameter

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        first = y[0] if isinstance(y, tuple) else y
        out = hidden_states + F.linear(first - hidden_states, self.M)
        return (out, *y[1:]) if isinstance(y, tuple) else out


class Told:
    """y = block(x + e), e (d,)."""

    e: nn.Parameter

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        return super().forward(hidden_states + self.e, *args, **kwargs)  # type: ignore[misc]


class Encoded:
    """y = v * block(x), v (d,)."""

    v: nn.Parameter

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        return (y[0] * self.v, *y[1:]) if isinstance(y, tuple) else y * self.v


class Projection:
    """y = b1 z + b2 W2 gelu(W1 norm(z)), z = block(x): b (2,), norm (d,), W1 (m, d), W2 (d, m)."""

    mix: nn.Parameter
    mix_norm: nn.Parameter
    mix_in: nn.Parameter
    mix_out: nn.Parameter

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Any:
        y = super().forward(hidden_states, *args, **kwargs)  # type: ignore[misc]
        z = y[0] if isinstance(y, tuple) else y
        inner = F.gelu(F.linear(F.layer_norm(z, z.shape[-1:], self.mix_norm), self.mix_in))
        out = self.mix[0] * z + self.mix[1] * F.linear(inner, self.mix_out)
        return (out, *y[1:]) if isinstance(y, tuple) else out
