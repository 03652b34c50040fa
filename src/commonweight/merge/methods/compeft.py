"""ComPEFT: every task vector as the signs of its largest entries times one number."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from torch import Tensor

from ...core.ternary import kept, level
from ..call.declare import method
from ..maths import parts
from ..registry import At, Density, Each, Range, Survey


def _scope(config: Mapping[str, Any]) -> Any:
    return "model"


_cuts = parts.magnitude_cuts(lambda numel, config: tuple((kept(numel, d),) for d in config["density"]), _scope)


def _look(tensors: Sequence[Tensor], base: Tensor, *, at: At, seen: Any, **config: Any) -> dict[str, Any]:
    finds = seen["finds"] if seen else None
    out = _cuts.look(tensors, base, at=at, seen=finds, **config)
    if seen is None:
        tau = parts.deltas(tensors, base).flatten(1).double()
        out["moments"] = torch.stack([tau.sum(1), tau.square().sum(1)])
    return out


def _join(total: dict[str, Any], seen: Any, *, numel: int, **config: Any) -> tuple[Any, bool]:
    levels = seen["levels"] if seen else [level(s, q, numel) for s, q in total["moments"].T.tolist()]
    finds, done = _cuts.join(total, seen["finds"] if seen else None, numel=numel, **config)
    return {"finds": finds, "levels": levels}, done


@method(
    "compeft",
    paper="ComPEFT: Compression for Communicating Parameter Efficient Updates via Sparsification and Quantization, "
    "arXiv 2311.13171",
    equation="tau^_t = alpha std(tau_t) sgn(top-k(tau_t)); theta = theta_0 + scale sum_t w_t tau^_t",
    survey=Survey(_look, _join, _scope),
)
def compeft(
    tensors: Sequence[Tensor],
    base: Tensor,
    *,
    weights: Sequence[float],
    at: At,
    seen: Any,
    density: Density = 0.2,
    alpha: Each = 1.0,
    scale: Annotated[float, Range()] = 1.0,
) -> Tensor:
    """One model: what its compressed form gives back. Several: the sum of them, as the paper merges them.

    density: the paper's k, from 0.05 to 0.5; alpha: from 0.5 to 10, both chosen on a few validation rows. Top-k and
    standard deviation are those of the whole task vector (of the tensors given), equal magnitudes by index.
    """
    tau = parts.deltas(tensors, base)
    signs = tau.sign() * parts.top(seen["finds"], tau, at, "model")
    each: Any = alpha
    return base + parts.combine(signs, [scale * w * a * s for w, a, s in zip(weights, each, seen["levels"])])
