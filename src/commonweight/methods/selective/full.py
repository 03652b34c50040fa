"""Full fine-tuning as a tenant: every weight and bias of the blocks may change. The yardstick, and a task vector."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind import Shift
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config
from ..registry import method


@config
class Full:
    pass


@method(
    "full",
    Full,
    paper="Editing Models with Task Arithmetic, arXiv 2212.04089",
    formula="sum over sites of d_out d_in, and d_out where there is a bias",
    kinds=("linear", "expert", "conv", "norm", "parameter"),
    lr=1e-4,
)
def plan(sites: Sequence[Site], config: Full) -> Plan:
    """w' = w + dw, b' = b + db, zero at the start: the pools together are the paper's task vector.

    Shapes: dw (d_out, d_in), of a norm (d,); db (d_out,). Linear in: dw and db. Cost: one addition per weight in every
    forward pass, and in a mixed batch one weight per tenant: for training and for merging, not for serving many.
    Source: arXiv 2212.04089, section 2. Differs: differences instead of copies, so that weight decay pulls towards the
    base; embeddings and heads by a pattern alone.
    """
    pools, uses = {}, []
    for s in sites:
        shape = (s.out,) if s.kind == "norm" else (s.out, s.inp)
        shapes = {"dw": shape, "db": (s.out,)} if s.bias else {"dw": shape}
        pools |= {f"{s.name}.{slot}": Pool(shape, ZEROS) for slot, shape in shapes.items()}
        uses.append(Use(s.name, Shift(), {slot: Read(WHOLE, (f"{s.name}.{slot}",)) for slot in shapes}))
    return Plan(pools, tuple(uses))
