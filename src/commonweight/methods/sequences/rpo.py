"""Read-only prompts: they read the tokens of every block, are read by nothing, and are what is read out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...address import WHOLE
from ...core import Base, Normal, Plan, Pool, Read, Site, Use, config, option, serial
from ..registry import method


@config
class RPO:
    tokens: int = option(24, "prompts K", ge=1)
    std: float = option(0.1, "deviation of the normal numbers that they start from", gt=0)


@serial
@dataclass(frozen=True)
class ReadOut:
    """y' = mean over prompts of what the last block answers, for all tokens of a row.

    Shapes: P (K, d), x (B, K or more, n d), y (B, T, d). Linear in: nothing. Cost: K tokens through n blocks.
    """

    blocks: int
    tokenwise: ClassVar[bool] = False
    follows: ClassVar[bool] = True

    def queries(self, P: Tensor) -> Tensor:
        return P.expand(self.blocks, *P.shape)

    def output(self, x: Tensor, y: Tensor, base: Base, P: Tensor) -> Tensor:
        return x[..., : P.shape[-2], -P.shape[-1] :].mean(-2, keepdim=True).expand_as(y)

    def grouped(self, x: Tensor, y: Tensor, base: Base, P: Tensor) -> Tensor:
        """`output` of n readers at once: x and y (n, T, ...), P with a leading n."""
        return self.output(x, y, base, P)


@method(
    "rpo",
    RPO,
    paper="Read-only Prompt Optimization for Vision-Language Few-shot Learning, ICCV 2023, arXiv 2308.14960",
    formula="for each stack of blocks K d",
    kinds=("queries",),
    named=(),
    lr=3e-3,
    fresh="what is read out is what its prompts have read",
    size=("tokens",),
)
def plan(sites: Sequence[Site], config: RPO) -> Plan:
    """y' = 1/K sum_i z_i for all tokens of a row, z_i = block_n(... block_1(p_i)); in each block a prompt reads the
    row's tokens, and neither itself nor another prompt. What the blocks make of the tokens stays the base's.

    Shapes: P (K, d). Linear in: nothing. Cost: K tokens through each block; gradients go through these alone. With a
    cache generation is refused.
    Source: arXiv 2308.14960 (its text was not read); github.com/mlvlab/RPO @d770db6, trainers/rpo.py, whose masks these
    are. Differs: one stack of blocks, where they have CLIP's two. There logits are the mean over i of the cosines of
    image prompt i and text prompt i; here a head reads the mean of the prompts, which for a linear head is the mean of
    its answers, without the cosine. Prompts go into the first block as they are, where theirs pass a norm before it,
    and begin as noise of 0.1 alone, where theirs is added to the vector of a special token, which a stack of blocks
    does not know. They stand where a row's last token does, where positions rotate. The rate is ours (theirs: SGD at
    0.01).
    """
    pools, uses = {}, []
    for s in sites:
        pools[f"{s.name}.P"] = Pool((config.tokens, s.out), Normal(config.std))
        uses.append(Use(s.name, ReadOut(s.inp // s.out), {"P": Read(WHOLE, (f"{s.name}.P",))}))
    return Plan(pools, tuple(uses))
