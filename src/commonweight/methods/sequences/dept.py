"""DePT: a short prompt, and what a token's vector is given for its position."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import SoftTokens
from ...core import (
    ZEROS,
    Base,
    CommonweightError,
    Plan,
    Pool,
    Read,
    Site,
    Use,
    config,
    counted,
    kaiming,
    option,
    serial,
)
from ..registry import method
from .prompt_tuning import start


@config
class DePT:
    tokens: int = option(40, "vectors m in front of a row", ge=1)
    rank: int = option(45, "rank r of what positions bring", ge=1)
    length: int = option(256, "positions s that bring something; tokens behind them are left as they are", ge=1)
    alpha: float = option(8.0, "what positions bring is multiplied by alpha / sqrt(r)", gt=0)
    start: Literal["words", "first", "normal"] = option(
        "words", "of the vectors: entries of the base's table, drawn or its first m; normal: of deviation 1"
    )


@serial
@dataclass(frozen=True)
class ByPosition:
    """y' = y + scale A_i B for the token at position i of its row, y itself from position s on.

    Shapes: x (..., 1) the positions, A (s, r), B (r, d), y (..., d). Linear in: A and B, each alone.
    Cost: T r d products, and r reads a token.
    """

    scale: float
    anywhere: ClassVar[str] = "output"

    def output(self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor) -> Tensor:
        inside = x < A.shape[-2]
        mine = A[torch.where(inside, x, 0)[..., 0]] * inside
        return y + self.scale * mine @ B

    def grouped(self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor) -> Tensor:
        """`output` of n readers at once: x (n, T, 1), y (n, T, d), A (n, s, r), B (n, r, d)."""
        inside = x < A.shape[-2]
        at = torch.where(inside, x, 0).expand(-1, -1, A.shape[-1])
        return y + self.scale * (A.gather(1, at) * inside) @ B


@method(
    "dept",
    DePT,
    paper="DePT: Decomposed Prompt Tuning for Parameter-Efficient Fine-tuning, arXiv 2309.05173",
    formula="m d + r (s + d)",
    kinds=("prompt", "positions"),
    named=(),
    lr=2e-3,
    fresh="every token reads the prompt, whatever it holds",
    size=("rank", "tokens"),
)
def plan(sites: Sequence[Site], config: DePT) -> Plan:
    """[E; X'] with X'_i = X_i + alpha / sqrt(r) A_i B: m vectors in front of a row, and a sum for each token that goes
    by its position in the row.

    Shapes: E (m, d), A (s, r), B (r, d). Linear in: E; A and B, each alone. Cost: that of prompt-tuning, and T r d
    products; it cannot be merged. A begins uniform within 1 / sqrt(r), B as zero. m 40 and r 45 have the size of 100
    vectors of T5-base.
    Source: arXiv 2309.05173; github.com/ZhengxiangShi/DePT @f0266a7, `PromptEmbeddingLoRA`, where alpha is 8.
    Differs: the code adds A B as a whole, to rows that must be padded to s tokens, and padding gets its part; here a
    position is that among a row's own tokens. In generation it adds nothing to new tokens; here these have their
    positions too, as in training. A and B have a tenth of the rate of E, which is ours (theirs: 0.3 or 0.4 for E, 5e-4,
    5e-3 or 0.3 for A and B), and so is start="words".
    Raises: CommonweightError where sites of kind prompt and of kind positions are not both there.
    """
    kinds = {s.kind for s in sites}
    if len(kinds) < 2:
        raise CommonweightError(
            f"dept: a prompt and what positions bring, but the {counted(len(sites), 'site')} of it are of kind "
            f"{kinds.pop()} alone; name sites of kind prompt and of kind positions, or take prompt-tuning"
        )
    pools, uses = {}, []
    for s in sites:
        if s.kind == "prompt":
            slots, bind = {"E": Pool((config.tokens, s.out), start(s, config.start))}, SoftTokens()
        else:
            r = config.rank
            slots = {"A": Pool((config.length, r), kaiming(r), lr=0.1), "B": Pool((r, s.out), ZEROS, lr=0.1)}
            bind = ByPosition(config.alpha / r**0.5)
        pools |= {f"{s.name}.{k}": p for k, p in slots.items()}
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in slots}))
    return Plan(pools, tuple(uses))
