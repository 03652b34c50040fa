"""CoDA: of every row the tokens that score best run through a block, and an adapter stands beside it for all."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind import SoftTopK
from ...core import ZEROS, CommonweightError, Normal, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import method


@config
class CoDA:
    size: int = option(16, "width r of the adapter", ge=1)
    reduction: float = option(2.0, "how many times fewer tokens run through a block", ge=1)
    scale: float = option(1.0, "factor on what the adapter adds", gt=0)
    eps: float = option(0.03, "temperature of the soft choice", gt=0)
    steps: int = option(20, "rounds of the solver of the soft choice", ge=1)


@method(
    "coda",
    CoDA,
    paper="Conditional Adapters: Parameter-efficient Transfer Learning with Fast Inference, arXiv 2304.04947",
    formula="sum over blocks of 2 r d + r + 2 d",
    kinds=("block",),
    named=(),
    lr=1e-3,
    fresh="part of the tokens skip each block from the start",
    size=("size",),
)
def plan(sites: Sequence[Site], config: CoDA) -> Plan:
    """y = x + m (block(x) - x) + s (W_up relu(W_down x + b_down) + b_up): x what a block is given, m of each token.

    m is a soft top-k choice of the scores w LN(x), and 0 but for the k = T / reduction best of a row. The others are
    not computed and not seen by those that are, in training as at inference. Shapes: w and b_up (d,), W_down (r, d),
    W_up (d, r). Cost: 2 T r d products a block, and the block for k tokens. Of encoders alone: k is of a whole row.
    Source: arXiv 2304.04947, of which the abstract and summaries could be read; no official code. The solver is
    github.com/lucidrains/CoLT5-attention @f2a8da0's. Ours: w begins as N(0, 0.02^2); reduction 2 (the paper's models
    have 3 to 5). Its first phase trains router and adapters on the pretraining task, for steps that were not found. It
    is no option: blocks that leave tokens out are those of encoders, whose pretraining is to fill in masked tokens, and
    `adapt` has no such task. In a loop of one's own it is a first training of the same tenant.
    Differs: blocks that make relative positions of their own see the tokens that are left as neighbours.
    Raises: CommonweightError where all blocks are causal.
    """
    mine = [s for s in sites if s.role != "causal"]
    if not mine:
        raise CommonweightError(
            f"coda reads sites of kind block in which a token sees the whole row; {sites[0].name} and the rest see "
            "what came before alone. Take dyt, which decides token by token"
        )
    pools, uses, r = {}, [], config.size
    for s in mine:
        slots = {
            "select": Pool((s.inp,), Normal(0.02)),
            "down": Pool((r, s.inp), kaiming(s.inp)),
            "down_bias": Pool((r,), ZEROS),
            "up": Pool((s.out, r), ZEROS),
            "up_bias": Pool((s.out,), ZEROS),
        }
        pools |= {f"{s.name}.{k}": p for k, p in slots.items()}
        bind = SoftTopK(config.reduction, config.scale, config.eps, config.steps)
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in slots}))
    return Plan(pools, tuple(uses))
