"""BitFit: the biases of linear layers and norms, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind import BiasShift, Shift
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, Use, config
from ..registry import method


@config
class BitFit:
    pass


@method(
    "bitfit",
    BitFit,
    paper="BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked LMs, arXiv 2106.10199",
    formula="sum of d_out over sites that have a bias",
    kinds=("linear", "expert", "conv", "norm"),
    named=("router",),
    lr=2e-3,
)
def plan(sites: Sequence[Site], config: BitFit) -> Plan:
    """b' = b + db for every bias that exists; db is zero at the start.

    Shapes: db (d_out,). Linear in: db. Cost: T d_out additions a linear layer; a norm is computed again.
    Source: arXiv 2106.10199, section 3. Differs: differences instead of copies; biases inside the blocks by
    default. A key's bias moves all scores of a query alike, so that it learns nothing where positions are not
    rotated; it is kept, as in the paper. Raises: when no site has a bias, as in Llama or T5.
    """
    pools, uses = {}, []
    for s in (s for s in sites if s.bias):
        pools[f"{s.name}.db"] = Pool((s.out,), ZEROS)
        bind = Shift() if s.kind == "norm" else BiasShift()
        uses.append(Use(s.name, bind, {"db": Read(WHOLE, (f"{s.name}.db",))}))
    if not uses:
        raise CommonweightError(
            f"bitfit reads sites of kind linear, conv or norm that have a bias; none of these "
            f"{len(sites)} sites has one; "
            "for a model without biases choose lntuning or ia3"
        )
    return Plan(pools, tuple(uses))
