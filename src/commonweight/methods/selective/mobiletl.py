"""MobileTL: the last blocks train, but of the norms inside a block the shifts alone."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind import Shift
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, option
from ..blocks import by_block
from ..registry import method


@config
class MobileTL:
    blocks: int = option(5, "blocks that train, counted from the end", ge=1)


def trained(block: Sequence[Site]) -> list[tuple[Site, dict[str, tuple[int, ...]]]]:
    """What of each site trains, and its shape."""
    last = next((s for s in reversed(block) if s.kind == "norm"), None)
    out = []
    for s in block:
        bias: dict[str, tuple[int, ...]] = {"db": (s.out,)} if s.bias else {}
        weight: dict[str, tuple[int, ...]] = {"dw": (s.out,) if s.kind == "norm" else (s.out, s.inp)}
        mine = bias if s.kind == "norm" and s is not last else weight | bias
        if mine:
            out.append((s, mine))
    return out


@method(
    "mobiletl",
    MobileTL,
    paper="MobileTL: On-device Transfer Learning with Inverted Residual Blocks, arXiv 2212.03246",
    formula="of each of the last k blocks its weights and biases, 2 d of its last norm and d of the others",
    kinds=("linear", "conv", "norm"),
    lr=1e-4,
    size=("blocks",),
)
def plan(sites: Sequence[Site], config: MobileTL) -> Plan:
    """w' = w + dw and b' = b + db in the last `blocks` blocks, zero at the start; of a block's norms the last one has
    both, those inside db alone, so that nothing of what they are given is kept for it.

    Shapes: dw (d_out, d_in), of a norm (d,); db (d_out,). Linear in: dw and db. No gradient goes below these blocks.
    `adapt.one_bit` is the other half: activations keep one bit a number for the backward pass. The head is trained
    beside it: `labels=`, or `modules_to_save=`.
    Source: the abstract and the caption of figure 2 of arXiv 2212.03246; there is no code, and the text could not be
    read. Differs: a block is what bears the first run of numbers in a name (layer.3, blocks.5.0), of any model, where
    theirs are inverted residual blocks; linear layers train as convolutions do. The last norm's running mean and
    variance stay the base's, which other tenants read, and nothing is lost by it: with others, m' and v', a norm says
    what w' = w s, b' = b + w (m - m') / sqrt(v' + e) say with m and v, s = sqrt((v + e) / (v' + e)), and dw and db are
    there to be trained. So there is no norming by the batch's own numbers in training either. The rate is ours.
    """
    pools, uses = {}, []
    for block in by_block(sites)[-config.blocks :]:
        for s, shapes in trained(block):
            pools |= {f"{s.name}.{slot}": Pool(shape, ZEROS) for slot, shape in shapes.items()}
            uses.append(Use(s.name, Shift(), {slot: Read(WHOLE, (f"{s.name}.{slot}",)) for slot in shapes}))
    return Plan(pools, tuple(uses))
