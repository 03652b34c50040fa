"""The forwards of modules that hold experts, with every projection run by `linear.project`.

Activation, gate, biases, norms and the weighing by the router are the module's own functions; only the order in which
rows are multiplied is ours, as it is in each of transformers' own implementations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from ..route import Route
from .linear import Rows, project
from .products import pieces
from .readers import reader_of, uses
from .stacked import Stacked


def mixed(module: nn.Module) -> bool:
    """Whether transformers' ``use_experts_implementation`` has made the class: its functions have stated names."""
    names = ("has_gate", "has_bias", "is_transposed", "_apply_gate", "num_experts", "config")
    return all(hasattr(module, n) for n in names) and not getattr(module, "_is_expert_parallel", False)


def spread(module: nn.Module) -> bool:
    """Whether every expert sees every token, already weighed, one expert's after another's: Llama 4."""
    return type(module).__name__ == "Llama4TextExperts"


def run_mixed(
    module: nn.Module,
    parts: Mapping[str, Stacked],
    route: Route,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """Experts that are given tokens (N, d), the experts of each (N, k) and their weights (N, k)."""
    count, k = len(hidden_states), top_k_index.shape[-1]
    who = reader_of(route, hidden_states, next(iter(parts.values())).name)
    rows, order = arranged(
        top_k_index.reshape(-1),
        None if who is None else who.repeat_interleave(k),
        _readers(route),
        module.num_experts,  # type: ignore[arg-type]
    )
    y = _through(module, parts, route, rows, hidden_states[order // k])
    if getattr(module, "has_post_expert_norm", False):
        y = module.post_expert_norm(y)  # type: ignore[operator]
    y = y * top_k_weights.reshape(-1)[order][:, None]
    y = y.index_select(0, _inverse(order)).view(count, k, -1).sum(1)
    return y.to(hidden_states.dtype)


def run_spread(module: nn.Module, parts: Mapping[str, Stacked], route: Route, hidden_states: Tensor) -> Tensor:
    """Experts that are given (E N, d), the tokens as often as there are experts."""
    E = next(iter(parts.values())).count
    n = len(hidden_states) // E
    expert = torch.arange(E, device=hidden_states.device).repeat_interleave(n)
    who = reader_of(route, hidden_states[:n], next(iter(parts.values())).name)
    rows, order = arranged(expert, None if who is None else who.repeat(E), _readers(route), E)
    y = _through(module, parts, route, rows, hidden_states if who is None else hidden_states[order])
    return y if who is None else y.index_select(0, _inverse(order))


def _readers(route: Route) -> int:
    return 1 if route.single is not None else len(route.groups)


def arranged(expert: Tensor, reader: Tensor | None, readers: int, count: int) -> tuple[Rows, Tensor]:
    """(rows by expert and reader, where each of them was). expert, reader: of each routed row, (S,)."""
    key = expert if reader is None else expert * readers + reader
    key, order = torch.sort(key, stable=True)
    each = torch.bincount(key, minlength=count * readers).cumsum(0).to(torch.int32)
    ends = each if readers == 1 else each[readers - 1 :: readers].contiguous()
    return Rows(key if readers == 1 else key // readers, ends, each, pieces(each)), order


def _inverse(order: Tensor) -> Tensor:
    out = torch.empty_like(order)
    out[order] = torch.arange(len(order), device=order.device)
    return out


def _through(module: nn.Module, parts: Mapping[str, Stacked], route: Route, rows: Rows, x: Tensor) -> Tensor:
    """Up, gate or activation, down."""
    gathered = getattr(getattr(module, "config", None), "_experts_implementation", None) == "batched_mm"
    gate: Callable | None = getattr(module, "_apply_gate", None) if getattr(module, "has_gate", True) else None
    up = parts["gate_up_proj" if "gate_up_proj" in parts else "up_proj"]
    x = project(up, uses(route, up), rows, x, gathered)
    if gate is not None:
        x = gate(x)
    elif spread(module):
        first, second = x.chunk(2, dim=-1)
        x = second * module.act_fn(first)  # type: ignore[operator]
    else:
        x = module.act_fn(x)  # type: ignore[operator]
    down = parts["down_proj"]
    return project(down, uses(route, down), rows, x, gathered)
