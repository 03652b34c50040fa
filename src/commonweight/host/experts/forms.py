"""The forwards of modules that hold experts, with every projection run by `linear.project`.

Activation, gate, biases, norms and the weighing by the router are the module's own functions; only the order in which
rows are multiplied is ours, as it is in each of transformers' own implementations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from ..packs import named_so
from ..route import Route
from ..stacks import Room
from .fused import Low, Through, Work, chunks
from .linear import Rows, alike, factors, project
from .products import pieces
from .readers import reader_of, uses
from .stacked import Stacked


def mixed(module: nn.Module) -> bool:
    """Whether transformers' ``use_experts_implementation`` has made the class: its functions have stated names. Packed
    ones of transformers are called as these are."""
    names = ("has_gate", "has_bias", "is_transposed", "_apply_gate", "num_experts", "config")
    known = all(hasattr(module, n) for n in names) or named_so(
        module, "FP8Experts", "Mxfp4GptOssExperts", "GgufExperts"
    )
    return known and not getattr(module, "_is_expert_parallel", False)


def spread(module: nn.Module) -> bool:
    """Whether every expert sees every token, already weighed, one expert's after another's: Llama 4."""
    return named_so(module, "Llama4TextExperts", "FbgemmFp8Llama4TextExperts")


def run_mixed(
    module: nn.Module,
    parts: Mapping[str, Stacked],
    route: Route,
    room: Room,
    hidden_states: Tensor,
    top_k_index: Tensor,
    top_k_weights: Tensor,
) -> Tensor:
    """Experts that are given tokens (N, d), DBRX's (B, T, d), the experts of each (N, k) and their weights (N, k)."""
    given, hidden_states = hidden_states, hidden_states.reshape(-1, hidden_states.shape[-1])
    count, k = len(hidden_states), top_k_index.shape[-1]
    who = reader_of(route, hidden_states, *(p.name for p in parts.values()))
    rows, order = arranged(
        top_k_index.reshape(-1),
        None if who is None else who.repeat_interleave(k),
        _readers(route),
        module.num_experts,  # type: ignore[arg-type]
    )
    fused = torch.is_grad_enabled() and "w1" not in parts and not getattr(module, "has_post_expert_norm", False)
    if fused and (low := _lows(parts, route, rows, hidden_states.dtype)) is not None:
        return _fused(module, parts, rows, order // k, order, low, hidden_states, top_k_weights.reshape(-1))
    y = _through(module, parts, route, room, rows, hidden_states[order // k])
    if getattr(module, "has_post_expert_norm", False):
        y = module.post_expert_norm(y)  # type: ignore[operator]
    y = y * top_k_weights.reshape(-1)[order][:, None]
    y = y.index_select(0, _inverse(order)).view(count, k, -1).sum(1)
    return y.to(given.dtype).view_as(given)


def run_spread(
    module: nn.Module, parts: Mapping[str, Stacked], route: Route, room: Room, hidden_states: Tensor
) -> Tensor:
    """Experts that are given (E N, d), the tokens as often as there are experts."""
    E = next(iter(parts.values())).count
    n = len(hidden_states) // E
    expert = torch.arange(E, device=hidden_states.device).repeat_interleave(n)
    who = reader_of(route, hidden_states[:n], *(p.name for p in parts.values()))
    rows, order = arranged(expert, None if who is None else who.repeat(E), _readers(route), E)
    y = _through(module, parts, route, room, rows, hidden_states if who is None else hidden_states[order])
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


def _projections(module: nn.Module, parts: Mapping[str, Stacked]) -> tuple[Stacked, Callable, Stacked]:
    """Up, what stands between, down."""
    up = parts["gate_up_proj" if "gate_up_proj" in parts else "up_proj"]
    if not getattr(module, "has_gate", True):
        return up, module.act_fn, parts["down_proj"]  # type: ignore[return-value]
    if hasattr(module, "_apply_gate"):
        return up, module._apply_gate, parts["down_proj"]  # type: ignore[return-value]
    if named_so(module, "Mxfp4GptOssExperts"):
        return up, partial(_clamped, module), parts["down_proj"]
    return up, partial(_swiglu, module.act_fn), parts["down_proj"]  # type: ignore[arg-type]


def _clamped(module: nn.Module, x: Tensor) -> Tensor:
    """The gate of gpt-oss, which its packed experts have within a kernel: gate and up stand in turns."""
    limit: float = module.limit  # type: ignore[assignment]
    gate, up = x[..., ::2].clamp(max=limit), x[..., 1::2].clamp(min=-limit, max=limit)
    return (up + 1) * gate * torch.sigmoid(gate * module.alpha)  # type: ignore[operator]


def _swiglu(act: Callable, x: Tensor) -> Tensor:
    gate, up = x.chunk(2, dim=-1)
    return up * act(gate)


def _through(
    module: nn.Module, parts: Mapping[str, Stacked], route: Route, room: Room, rows: Rows, x: Tensor
) -> Tensor:
    if "w1" in parts:
        first, up, down = parts["w1"], parts["v1"], parts["w2"]
        gated = first.module.activation_fn(project(first, uses(route, first), rows, x, room))  # type: ignore[operator]
        h = gated * project(up, uses(route, up), rows, x, room)
    else:
        up, gate, down = _projections(module, parts)
        h = gate(project(up, uses(route, up), rows, x, room))
    return project(down, uses(route, down), rows, h, room)


def _lows(parts: Mapping[str, Stacked], route: Route, rows: Rows, dtype: torch.dtype) -> dict[str, Low | None] | None:
    """The changes of both projections where `fused` takes them, else None."""
    out: dict[str, Low | None] = {}
    for slot, part in parts.items():
        if part.pack is not None:
            return None
        fits, entries = alike(part, uses(route, part), rows)
        if not fits:
            return None
        out[slot] = factors(entries, dtype) if entries else None
    return out


def _fused(
    module: nn.Module, parts: Mapping[str, Stacked], rows: Rows, token: Tensor, place: Tensor,
    low: Mapping[str, Low | None], hidden: Tensor, weights: Tensor,
) -> Tensor:  # fmt: skip
    up, gate, down = _projections(module, parts)
    up_bias, down_bias = (None if p.bias is None else p.bias.view(p.count, p.out) for p in (up, down))
    at = [b for _, _, b in rows.pieces]
    lows = torch.tensor(at, dtype=torch.int32, device=hidden.device)
    pieces = chunks(rows.ends.tolist(), at, hidden.device)
    work = Work(
        gate, up.each, down.each, up_bias, down_bias, token, place, rows.expert, rows.ends, lows, pieces
    )  # fmt: skip
    each = [t for p in (up, down) for t in (low[p.slot] or (None, None))]
    return Through.apply(work, hidden, weights, *each)  # type: ignore[no-any-return]
