"""Dependency-preserving hypernetworks: a recurrent network gives the layers their updates, one after another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from ...address import Emitted
from ...bind import LowRank
from ...core import ZEROS, Normal, Plan, Pool, Read, Site, Uniform, Use, config, option
from ..registry import method


@config
class Recurrent:
    hidden: int = option(32, "width h of the LSTM, and of a task's code", ge=1)
    inputs: int = option(8, "numbers that a step is told of its layer", ge=1)
    rank: int = option(4, "rank of each layer's update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    alone: bool = option(False, "each layer from the code alone, without those before it: a plain hypernetwork")


@method(
    "recurrent",
    Recurrent,
    paper="Dependency-Preserving Hypernetworks for continual learning, arXiv 2209.07712",
    formula="h r (sum over widths of d) + 4 h (h + i + 2) + i sites once, and h",
    lr=3e-3,
    common="the LSTM and the heads; its own: the code",
    size=("rank", "hidden"),
)
def plan(sites: Sequence[Site], config: Recurrent) -> Plan:
    """dW_l = (alpha / r) B_l A_l, [A_l; B_l] = head h_l, h_l = LSTM(h_(l-1), x_l), h_0 = the task's code.

    Shapes: code (h,), x_l (i,), of each width d a head (h, r d) for A and for B, the latter zero at the start. Linear
    in: each head alone. Cost: l cells to read layer l, so L^2 / 2 cells for a pass. Tasks of a common have all but the
    code in common. `drift` is the known regulariser (arXiv 1906.00695), which keeps earlier tasks' numbers; it has no
    place in `adapt`'s loss.
    Source: arXiv 2209.07712, the abstract, which is all that was found: a recurrent hypernetwork emits the layers'
    weights in sequence, by task. The cell, low-rank updates in the place of whole weights, and the heads are ours; its
    own regulariser and its rule of growth were not found.
    """
    h, r = config.hidden, config.rank
    bound = Uniform(h**-0.5)
    shared = {
        "inputs": Pool((len(sites), config.inputs), Normal(1.0), scope="shared"),
        **{
            n: Pool(shape, bound, scope="shared")
            for n, shape in (("wi", (4 * h, config.inputs)), ("wh", (4 * h, h)), ("bi", (4 * h,)), ("bh", (4 * h,)))
        },
    }
    pools: dict[str, Pool] = {"code": Pool((h,), Normal(1.0)), **shared}
    scale = (2.0 * r if config.alpha is None else config.alpha) / r
    uses = []
    for at, s in enumerate(sites):
        reads = {}
        for slot, d, shape in (("A", s.inp, (r, s.inp)), ("B", s.out, (s.out, r))):
            init = Normal((3 * d * h) ** -0.5) if slot == "A" else ZEROS
            pools.setdefault(f"head.{slot}.{d}", Pool((h, r * d), init, scope="shared"))
            reads[slot] = Read(Emitted(at, shape, config.alone), (f"head.{slot}.{d}", "code", *shared))
        uses.append(Use(s.name, LowRank(scale), reads))
    return Plan(pools, tuple(uses))


def drift(now: Mapping[str, Mapping[str, Tensor]], before: Mapping[str, Mapping[str, Tensor]]) -> Tensor:
    """The mean over earlier tasks of |Theta(now) - Theta(before)|^2. now, before: {task: {slot: numbers}}.

    Source: von Oswald et al., arXiv 1906.00695, eq. (2)."""
    each = [sum((now[t][k] - v.detach()).square().sum() for k, v in slots.items()) for t, slots in before.items()]
    return sum(each) / len(each)  # type: ignore[return-value]
