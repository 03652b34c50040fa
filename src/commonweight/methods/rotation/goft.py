"""GOFT: the input is turned by log2(d) stages of rotations of pairs; qGOFT: nearly so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Givens
from ...core import ONES, ZEROS, Eyes, Plan, Pool, Read, Site, Use, config, option
from ..registry import method


@config
class GOFT:
    quasi: bool = option(False, "qGOFT: four free numbers for each pair in place of an angle, and the penalty")
    penalty: float = option(0.01, "qGOFT: weight of the squared products of each pair's two columns", ge=0)
    scale: bool = option(False, "a factor for each turned input besides, as version 1 of the released code adds")

    def check(self) -> str | None:
        if self.quasi and self.scale:
            return "quasi with scale: the four free numbers of a pair scale already, and no source has both; choose one"
        return None


def _penalty(config: GOFT, plan: Plan, pools: Mapping[str, Tensor]) -> Tensor:
    """lambda times the sum over pairs of <column 1, column 2>^2."""
    found = [(p[..., 0] * p[..., 1]).sum(-1).square().sum() for n, p in pools.items() if n.endswith(".G")]
    return config.penalty * torch.stack(found).sum() if found else torch.zeros(())


@method(
    "goft",
    GOFT,
    paper="Parameter Efficient Quasi-Orthogonal Fine-Tuning via Givens Rotation, arXiv 2404.04316",
    formula="sum over sites of d_in - 1, with scale d_in more; quasi: 4 (d_in - 1)",
    kinds=("linear",),
    lr=1e-3,
    penalty=_penalty,
    size=(),
)
def plan(sites: Sequence[Site], config: GOFT) -> Plan:
    """y = W (P_m^T ... P_1^T x) + b with m = ceil(log2 d_in) stages of rotations of pairs, none turned at the start.

    Shapes: t (d_in - 1,), the angle being pi tanh(t); quasi: G (d_in - 1, 2, 2). scale: c (d_in,), one at the start,
    times what was turned, as in version 1 of the code (ArthurLeoM/peft-givens @4dd5a2e), which has it by default; the
    paper has none. Source: arXiv 2404.04316, eqs. (3) to (6), algorithm 1. Version 2 of the released code (@e6f03ec)
    takes neighbours at every stage and is no rotation beyond the first; the penalty is in the paper alone. A rotation
    of d - 1 angles turns a given vector into any other of its length; it is not any rotation.
    """
    pools, uses = {}, []
    for s in sites:
        if s.inp < 2:
            continue
        name = f"{s.name}.{'G' if config.quasi else 't'}"
        pools[name] = Pool((s.inp - 1, 2, 2), Eyes()) if config.quasi else Pool((s.inp - 1,), ZEROS)
        reads = {"t": Read(WHOLE, (name,))}
        if config.scale:
            pools[f"{s.name}.c"] = Pool((s.inp,), ONES)
            reads["c"] = Read(WHOLE, (f"{s.name}.c",))
        uses.append(Use(s.name, Givens(not config.quasi), reads))
    return Plan(pools, tuple(uses))
