"""Hydra: a low-rank branch beside a layer and another one after it."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind import Hydra as Branches
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import method


@config
class Hydra:
    rank: int = option(8, "rank of the branch beside the layer", ge=1)
    after: int | None = option(None, "rank of the branch after it; none: the same", ge=1)
    scale: float = option(1.0, "factor on both branches", gt=0)


@method(
    "hydra",
    Hydra,
    paper="Hydra: Multi-head Low-rank Adaptation for Parameter Efficient Fine-tuning, arXiv 2309.06922",
    formula="sum over sites of r (d_in + d_out) + 2 q d_out",
    kinds=("linear", "expert"),
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: Hydra) -> Plan:
    """y' = y + s B A x + s D C y, y = W x + b; A and C uniform, B and D zero at the start.

    Shapes: A (r, d_in), B (d_out, r), C (q, d_out), D (d_out, q). Source: arXiv 2309.06922, eq. (5) and (6);
    github.com/extremebird/Hydra @4138457. Differs: no biases of the branches; every site that is read, where the
    released code has the attention's output and the last layer of the MLP.
    """
    pools, uses, r, q = {}, [], config.rank, config.after or config.rank
    for s in sites:
        shapes = {"A": (r, s.inp), "B": (s.out, r), "C": (q, s.out), "D": (s.out, q)}
        for k, shape in shapes.items():
            pools[f"{s.name}.{k}"] = Pool(shape, kaiming(shape[1]) if k in "AC" else ZEROS)
        uses.append(Use(s.name, Branches(config.scale), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in shapes}))
    return Plan(pools, tuple(uses))
