"""LayerNorm tuning: gains and biases of the norms, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind import Shift
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config
from ..registry import method


@config
class LNTuning:
    pass


@method(
    "lntuning",
    LNTuning,
    paper="Tuning LayerNorm in Attention: Towards Efficient Multi-Modal LLM Finetuning, arXiv 2312.11420",
    formula="sum over norms of d, or 2 d where the norm has a bias",
    kinds=("norm",),
    named=(),
    lr=2e-3,
)
def plan(sites: Sequence[Site], config: LNTuning) -> Plan:
    """gain' = gain + dw, bias' = bias + db, both zero at the start.

    Shapes: dw and db (d,); db only where the norm has a bias. Linear in: dw and db.
    Cost: the norm is computed again with the tenant's numbers, a few T d. Source: arXiv 2312.11420, section 3.
    Differs: differences instead of copies, so that weight decay pulls towards the base; the norms inside the
    blocks by default, the last one of the model only by a pattern.
    """
    pools, uses = {}, []
    for s in sites:
        slots = ("dw", "db") if s.bias else ("dw",)
        pools |= {f"{s.name}.{slot}": Pool((s.out,), ZEROS) for slot in slots}
        uses.append(Use(s.name, Shift(), {slot: Read(WHOLE, (f"{s.name}.{slot}",)) for slot in slots}))
    return Plan(pools, tuple(uses))
