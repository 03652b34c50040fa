"""BOFT: a dense rotation of the input as a product of sparse ones, laid out as a butterfly."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from ...address import WHOLE
from ...bind import Butterfly
from ...core import ONES, ZEROS, Plan, Pool, Read, Site, Use, config, option
from ..registry import method
from .oft import block_of, said_twice, unfit


@config
class BOFT:
    block_size: int | None = option(
        None, "size b of the blocks; b 2^(factors - 1) must divide every d_in; none: 8", ge=2
    )
    blocks: int | None = option(None, "number of blocks instead of their size", ge=1)
    factors: int = option(2, "butterfly factors m; 1 is block-diagonal OFT", ge=1, le=12)
    dropout: float = option(0.0, "chance that a block is left unturned, in training", ge=0, le=0.95)

    def check(self) -> str | None:
        return said_twice(self.block_size, self.blocks)


def _span(config: BOFT) -> int:
    return 2 ** (config.factors - 1)


@method(
    "boft",
    BOFT,
    paper="Parameter-Efficient Orthogonal Finetuning via Butterfly Factorization, arXiv 2311.06243",
    formula="sum over sites of m d_in b + d_out, of which m d_in (b - 1) / 2 + d_out are free",
    depthwise=False,
    unfit=partial(unfit, 8, _span),
    lr=3e-3,
    size=("block_size",),
)
def plan(sites: Sequence[Site], config: BOFT) -> Plan:
    """y = s * (W (x F_(m-1) ... F_0)) + bias, F_i = P_i blockdiag(R_i) P_i^T, R_i = (I - Q_i) (I + Q_i)^-1.

    Shapes: R (m, d_in / b, b, b), Q_i its skew part (R_i - R_i^T) / 2; s (d_out,). The start is R = 0, s = 1.
    Linear in: s. Cost: m T d_in b products a site and m d_in / b solves of b^3; no dense weight, also in a mixed batch.
    Source: arXiv 2311.06243, section 4; s and the full square slots as in PEFT, whose numbers these are.
    Differs: m = 2 and b = 8 as the paper's small setting, where PEFT takes 1 and 4; dropout draws every block of
    every factor apart. Raises: when b 2^(m-1) does not divide a d_in, or b is odd and m > 1.
    """
    pools, uses = {}, []
    for s in sites:
        b = block_of("boft", s, config, 8, _span(config))
        pools[f"{s.name}.R"] = Pool((config.factors, s.inp // b, b, b), ZEROS)
        pools[f"{s.name}.s"] = Pool((s.out,), ONES)
        uses.append(Use(s.name, Butterfly(config.dropout), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in "Rs"}))
    return Plan(pools, tuple(uses))
