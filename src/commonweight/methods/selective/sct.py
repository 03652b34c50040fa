"""SCT: the channels in which a task's rows are largest are changed by one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from ...address import WHOLE
from ...bind import ChannelMix
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, option
from ..low_rank.lori import Places
from ..registry import method
from ..shown import Statistics


@config
class SCT:
    ratio: float = option(0.125, "share of a site's output channels that is changed", gt=0, le=1)
    start: Literal["rows", "random", "given"] = option(
        "rows", "rows: the channels that are largest on rows; random: drawn; given: what a start from rows becomes"
    )

    def channels(self, site: Site) -> int:
        return max(1, round(self.ratio * site.out))


def begin(config: SCT, sites: Sequence[Site], seen: Statistics) -> tuple[SCT, dict[str, Tensor]]:
    """The largest scores of each site; of equal ones the first."""
    values = {}
    for s in sites:
        order = seen[s.name].argsort(descending=True, stable=True)
        values[f"{s.name}.at"] = order[: config.channels(s)].sort().values.int()
    return replace(config, start="given"), values


@method(
    "sct",
    SCT,
    paper="SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient ChannelMix, arXiv 2309.08513",
    formula="sum over sites of k^2, and k where there is a bias, k = ratio d_out; 4 k bytes more in the file",
    kinds=("linear",),
    named=(),
    roles=("query", "value"),
    lr=1e-3,
    wants=lambda config: "channels" if config.start == "rows" else "",
    begin=begin,
    size=("ratio",),
)
def plan(sites: Sequence[Site], config: SCT) -> Plan:
    """y'[c] = y[c] + M y[c] + m at k chosen channels c of a layer's output; M and m zero at the start.

    Shapes: M (k, k), m (k,), c (k,). Linear in: M and m. A channel's score is the norm of its values over all tokens of
    a class, the mean over classes. Source: arXiv 2309.08513; github.com/showlab/SCT @384cecb, mode sct_qkv: the
    scripts' default, the stream after attention, is no layer's output. Differs: M starts at zero, where the code draws
    it, so that a fresh tenant is the base; m only where the layer has a bias; every real token counts, the first too.
    """
    pools, uses = {}, []
    for s in sites:
        k, n = config.channels(s), s.name
        reads = {"M": Read(WHOLE, (f"{n}.M",)), "at": Read(WHOLE, (f"{n}.at",))}
        pools[f"{n}.M"] = Pool((k, k), ZEROS)
        pools[f"{n}.at"] = Pool((k,), Places(s.out), train=False, save=config.start != "random", dtype="int32")
        if s.bias:
            pools[f"{n}.m"] = Pool((k,), ZEROS)
            reads["m"] = Read(WHOLE, (f"{n}.m",))
        uses.append(Use(n, ChannelMix(), reads))
    return Plan(pools, tuple(uses))
