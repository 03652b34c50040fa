"""APET: a budget of numbers, spent on parts of the model that chance chooses."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ...address import WHOLE
from ...bind import BiasShift, LowRank, Shift
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Rng, Site, Use, config, kaiming, option
from ..registry import method


@config
class APET:
    rank: int = option(8, "the budget is that of LoRA of this rank on all sites; also the rank of the new pairs", ge=1)
    new: float = option(0.5, "share of the budget for new pairs A, B; the rest is for weights and biases", ge=0, le=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    draw: int = option(0, "which of the ways to spend it", ge=0)


def spent(sizes: Sequence[int], budget: int, draw: int, name: str) -> list[int]:
    """Which tensors are taken: in an order by chance, each that still fits."""
    found = []
    for i in Rng(draw, name).permutation(len(sizes)).tolist():
        if sizes[i] <= budget:
            found.append(i)
            budget -= sizes[i]
    return sorted(found)


@method(
    "apet",
    APET,
    paper="Arbitrary Few Parameters are Good Enough for Adapting Large-scale Pre-trained Language Models, 2306.02320",
    formula="at most the sum over sites of r (d_in + d_out)",
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: APET) -> Plan:
    """w' = w + dw, b' = b + db at some sites, w' = w + (alpha / r) B A at others; dw, db and B zero at the start.

    Shapes: dw (d_out, d_in), db (d_out,), A (r, d_in), B (d_out, r). Linear in: each alone.
    Source: arXiv 2306.02320; github.com/yushengsu-thu/PET_Scaling @6c871fa, whose unit is a whole tensor, where the
    paper writes of single numbers: for those see `fish` with start="random". Differs: a pair A, B is taken where both
    fit, in the code where the first does, so that it can spend too much; the new modules are pairs alone, no adapters
    and prompts. Raises: CommonweightError where nothing fits.
    """
    r = config.rank
    budget = sum(r * (s.inp + s.out) for s in sites)
    scale = (2.0 * r if config.alpha is None else config.alpha) / r
    pairs = spent([r * (s.inp + s.out) for s in sites], int(config.new * budget), config.draw, "apet/new")
    tensors = [(s, k) for s in sites for k in ("dw", "db") if k == "dw" or s.bias]
    sizes = [s.out * s.inp if k == "dw" else s.out for s, k in tensors]
    chosen = {tensors[i] for i in spent(sizes, budget - int(config.new * budget), config.draw, "apet/base")}
    pools, uses = {}, []
    for i, s in enumerate(sites):
        n = s.name
        if (s, "dw") in chosen:
            pools[f"{n}.dw"] = Pool((s.out, s.inp), ZEROS, lr=0.1)
            uses.append(Use(n, Shift(), {"dw": Read(WHOLE, (f"{n}.dw",))}))
        if (s, "db") in chosen:
            pools[f"{n}.db"] = Pool((s.out,), ZEROS)
            uses.append(Use(n, BiasShift(), {"db": Read(WHOLE, (f"{n}.db",))}))
        if i in pairs:
            pools[f"{n}.A"], pools[f"{n}.B"] = Pool((r, s.inp), kaiming(s.inp)), Pool((s.out, r), ZEROS)
            uses.append(Use(n, LowRank(scale), {k: Read(WHOLE, (f"{n}.{k}",)) for k in "AB"}))
    if not uses:
        raise CommonweightError(
            f"apet: no weight, bias or pair of {len(sites)} sites fits a budget of {math.ceil(budget / 2):,} numbers "
            "each; give a larger rank"
        )
    return Plan(pools, tuple(uses))
