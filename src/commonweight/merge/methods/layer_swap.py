"""Layer swapping: one expert's first and last blocks, another's middle, and a mean between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from torch import Tensor

from ..call.declare import method
from ..registry import At, Range, Share

Blocks = Annotated[int, Range(ge=0)]


def share(block: tuple[int, int] | None, bottom: int, top: int, transition: int, inside: float) -> float | None:
    """How much of the second model a block takes; None outside of blocks."""
    if block is None:
        return None
    number, count = block
    edge = min(number - bottom, count - 1 - top - number)  # negative: swapped
    return 1.0 if edge < 0 else inside if edge < transition else 0.0


def check(config: Mapping[str, Any], n: int) -> str | None:
    if not config["bottom"] and not config["top"]:
        return "bottom and top are 0: nothing is swapped; give how many first and last blocks the second model gives"
    return None


@method(
    "layer_swap",
    paper="Layer Swapping for Zero-Shot Cross-Lingual Transfer in Large Language Models, arXiv 2410.01335",
    equation="theta_l = theta_2,l in the first `bottom` and the last `top` blocks, a mean beside them, else theta_1,l",
    base="none",
    models=(2, 2),
    check=check,
)
def layer_swap(
    tensors: Sequence[Tensor],
    base: None,
    *,
    at: At,
    bottom: Blocks = 5,
    top: Blocks = 4,
    transition: Blocks = 2,
    inside: Share = 0.5,
    outside: Share = 0.5,
) -> Tensor:
    """models: the expert that keeps the middle (the paper's: mathematics), then the one that gives both ends (its
    language). transition: so many blocks beside each swapped end are a mean, `inside` of it the second model's;
    outside: the second model's share of tensors outside of blocks (embeddings, last norm, head).

    Differs: the counts depend on the model; the paper sets them by where each expert changed most, and freezes the
    tensors outside of blocks or averages them. Where the ends meet or cross, everything is the second model's. The
    paper's own numbers of blocks are not repeated here as defaults: 5, 4 and 2 are ours for a model of 32 blocks.
    """
    part = share(at.depth, bottom, top, transition, inside)
    part = outside if part is None else part
    return tensors[0] + part * (tensors[1] - tensors[0])
