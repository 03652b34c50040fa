"""Small random models: float32, no equal magnitudes, a vector, a cube, a scalar and whole numbers among the tensors."""

from __future__ import annotations

import torch
from torch import Tensor

State = dict[str, Tensor]
SHAPES = {
    "embed.weight": (11, 8),
    "layers.0.w": (8, 12),
    "layers.1.w": (8, 12),
    "layers.2.w": (8, 12),
    "layers.2.bias": (12,),
    "conv": (4, 3, 5),
}


def models(
    n: int, seed: int = 0, spread: float = 0.3, shapes: dict[str, tuple[int, ...]] | None = None
) -> tuple[State, list[State]]:
    """(base, n models near it)."""
    g = torch.Generator().manual_seed(seed)

    def one() -> State:
        return {k: torch.randn(s, generator=g) for k, s in (shapes or SHAPES).items()}

    base = one()
    return base, [{k: base[k] + spread * x for k, x in one().items()} for _ in range(n)]


def gap(a: State, b: State) -> float:
    assert a.keys() == b.keys()
    return max((a[k].double() - b[k].double()).abs().max().item() for k in a)


def flat(state: State) -> Tensor:
    """The model as one vector: tensors sorted by name."""
    return torch.cat([state[k].reshape(-1) for k in sorted(state)])


def unflat(vector: Tensor, like: State) -> State:
    names = sorted(like)
    parts = vector.split([like[k].numel() for k in names])
    return {k: p.view(like[k].shape) for k, p in zip(names, parts)}


def statistics(n: int, kind: str, seed: int = 9) -> list[State]:
    """What the methods read beside n models of SHAPES; a Gram matrix for every tensor that has two dimensions."""
    g = torch.Generator().manual_seed(seed)

    def one(shape: tuple[int, ...]) -> Tensor:
        if kind == "coefficients":
            return torch.rand(3, generator=g)
        if kind == "gram":
            x = torch.randn(40, shape[-1], generator=g)
            return x.T @ x / 40
        return torch.rand(shape, generator=g)

    fits = {k: s for k, s in SHAPES.items() if kind != "gram" or len(s) == 2}
    return [{f"{kind}/{k}": one(s) for k, s in fits.items()} for _ in range(n)]
