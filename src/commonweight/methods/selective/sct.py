"""SCT: the channels in which a task's rows are largest are changed by one another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

from torch import Tensor

from ...address import WHOLE
from ...bind import ChannelMix, Lends, StreamMix
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, Use, config, option
from ..blocks import by_block
from ..low_rank.lori import Places
from ..registry import method
from ..shown import Statistics


@config
class SCT:
    ratio: float = option(0.125, "share of a site's output channels that is changed", gt=0, le=1)
    start: Literal["rows", "random", "given"] = option(
        "rows", "rows: the channels that are largest on rows; random: drawn; given: what a start from rows becomes"
    )
    place: Literal["outputs", "stream"] = option(
        "outputs",
        "outputs: of queries and values; stream: what is there once an attention's answer is added, the default of the "
        "released code",
    )
    streams: tuple[str, ...] = option((), "of a tenant that has begun there: of each block the norm, or attention<norm")

    def channels(self, site: Site) -> int:
        return max(1, round(self.ratio * site.out))

    def check(self) -> str | None:
        if self.streams and self.place != "stream":
            return "streams are told, and place is outputs; take place='stream'"
        return None


def begin(config: SCT, sites: Sequence[Site], seen: Statistics) -> tuple[SCT, dict[str, Tensor]]:
    """The largest scores of each place; of equal ones the first."""
    values, by = {}, {s.name: s for s in sites}
    names = tuple(seen) if config.place == "stream" else tuple(by)
    for n in names:
        order, site = seen[n].argsort(descending=True, stable=True), by[n.partition("<")[0]]
        values[f"{site.name}.at"] = order[: config.channels(site)].sort().values.int()
    return replace(config, start="given", streams=names if config.place == "stream" else ()), values


@method(
    "sct",
    SCT,
    paper="SCT: A Simple Baseline for Parameter-Efficient Fine-Tuning via Salient ChannelMix, arXiv 2309.08513",
    formula="sum over sites of k^2, and k where there is a bias, k = ratio d_out; 4 k bytes more in the file",
    kinds=("linear",),
    named=(),
    roles=("query", "value"),
    lr=1e-3,
    wants=lambda config: ("streams" if config.place == "stream" else "channels") if config.start == "rows" else "",
    begin=begin,
    size=("ratio",),
    reading=lambda config: {"kinds": ("norm", "attention"), "roles": ()} if config.place == "stream" else {},
)
def plan(sites: Sequence[Site], config: SCT) -> Plan:
    """y'[c] = y[c] + M y[c] + m at k chosen channels c of a layer's output; M and m zero at the start.

    Shapes: M (k, k), m (k,), c (k,). Linear in: M and m. A channel's score is the norm of its values over all tokens of
    a class, the mean over classes. Source: arXiv 2309.08513, its abstract alone, and github.com/showlab/SCT @384cecb,
    mode sct_qkv: the scripts' default, mode sct_attn, is place="stream": y is what there is once an attention's answer
    has been added to what the block was given, and m is there too. It has no form of a weight. Which of a block's norms
    is which is seen on rows (`streams`); before a norm first the attention's answer is changed, else what the norm is
    given.
    Differs: M starts at zero, where the code draws it, so that a fresh tenant is the base; m only where the layer has a
    bias; every real token counts, the first too. The configs' scales, which the released code passes over, are not
    there. Raises: CommonweightError for a stream without rows.
    """
    if config.place == "stream":
        return _behind_attention(sites, config)
    pools, uses = {}, []
    for s in sites:
        mine = _pools(s, config, s.bias)
        pools |= {f"{s.name}.{k}": p for k, p in mine.items()}
        uses.append(Use(s.name, ChannelMix(), {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in mine}))
    return Plan(pools, tuple(uses))


def _pools(site: Site, config: SCT, bias: bool) -> dict[str, Pool]:
    k = config.channels(site)
    at = Pool((k,), Places(site.out), train=False, save=config.start != "random", dtype="int32")
    return {"M": Pool((k, k), ZEROS), "at": at, **({"m": Pool((k,), ZEROS)} if bias else {})}


def _behind_attention(sites: Sequence[Site], config: SCT) -> Plan:
    by, pools, uses = {s.name: s for s in sites}, {}, []
    streams = config.streams
    if config.start == "rows":  # not begun yet: as many, of their size, where each block has its attention
        found = (next((s.name for s in block if s.kind == "attention"), None) for block in by_block(sites))
        streams = tuple(n for n in found if n is not None)
    if not streams:
        raise CommonweightError(
            "sct: place='stream' begins from rows, which show which norm is given what; give rows= (`adapt` takes the "
            "first training rows), or streams"
        )
    for stream in streams:
        name, _, norm = stream.partition("<")
        if lost := [n for n in (name, norm) if n and n not in by]:
            raise CommonweightError(f"sct: streams names {lost[0]}, which is none of its sites; choose sites with it")
        mine = _pools(by[name], config, True)
        pools |= {f"{name}.{k}": p for k, p in mine.items()}
        uses += [Use(norm, Lends(), {})] if norm else []
        uses.append(Use(name, StreamMix(norm), {k: Read(WHOLE, (f"{name}.{k}",)) for k in mine}))
    return Plan(pools, tuple(uses))
