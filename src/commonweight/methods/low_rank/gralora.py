"""GraLoRA: a small LoRA for every pair of an input block and an output block."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE, BlockDiagonal, Dealt
from ...bind import LowRank
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import method
from ..widths import divides


@config
class GraLoRA:
    rank: int = option(32, "rank r, dealt out among the blocks; a multiple of blocks", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / (rank + hybrid); none: twice that", gt=0)
    blocks: int = option(2, "blocks k of the input and of the output; must divide every width", ge=1)
    hybrid: int = option(0, "rank of a plain LoRA beside it", ge=0)
    dropout: float = option(0.0, "dropout on the input, in training", ge=0, le=0.95)

    def check(self) -> str | None:
        if self.rank % self.blocks:
            return f"rank={self.rank} is not a multiple of blocks={self.blocks}"
        return None


@method(
    "gralora",
    GraLoRA,
    paper="GraLoRA: Granular Low-Rank Adaptation for Parameter-Efficient Fine-Tuning, arXiv 2505.20355",
    formula="sum over sites of (r + h) (d_in + d_out), h the rank of the plain LoRA",
    lr=1e-3,
    unfit=divides("blocks"),
)
def plan(sites: Sequence[Site], config: GraLoRA) -> Plan:
    """Block (m, n) of dW, k by k of them, is s B_mn A_mn of rank r / k; B is zero at the start. The rank of dW is k r.

    Shapes: A (k, d_in / k, r), B (k, r, d_out / k); of the plain LoRA G_A (h, d_in), G_B (d_out, h). Linear in: each
    alone. Cost: as LoRA of rank k r. Source: arXiv 2505.20355; layout, start and scale as PEFT 0.21.2.
    Raises: CommonweightError when k does not divide a width.
    """
    k, r, h = config.blocks, config.rank, config.hybrid
    bind = LowRank(2.0 if config.alpha is None else config.alpha / (r + h), config.dropout)
    pools, uses = {}, []
    for s in sites:
        if s.inp % k or s.out % k:
            fit = [n for n in range(1, 33) if s.inp % n == 0 and s.out % n == 0]
            raise CommonweightError(
                f"gralora: {s.name}: widths {s.inp} and {s.out} are not both multiples of blocks={k}; choose blocks "
                f"from {fit}, or exclude the site"
            )
        pools[f"{s.name}.A"] = Pool((k, s.inp // k, r), kaiming(s.inp // k))
        pools[f"{s.name}.B"] = Pool((k, r, s.out // k), ZEROS)
        reads = {"A": Read(BlockDiagonal(), (f"{s.name}.A",)), "B": Read(Dealt(), (f"{s.name}.B",))}
        uses.append(Use(s.name, bind, reads))
        if h:
            pools[f"{s.name}.G_A"] = Pool((h, s.inp), kaiming(s.inp))
            pools[f"{s.name}.G_B"] = Pool((s.out, h), ZEROS)
            uses.append(Use(s.name, bind, {f: Read(WHOLE, (f"{s.name}.G_{f}",)) for f in "AB"}))
    return Plan(pools, tuple(uses))
