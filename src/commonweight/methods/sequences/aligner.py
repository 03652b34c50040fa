"""Aligner: a few tokens for the whole model, which every attention reads beside those of its row."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...address import WHOLE
from ...core import ZEROS, CommonweightError, Normal, Plan, Pool, Read, Site, Use, config, counted, option, serial
from ..registry import method


@config
class Aligner:
    tokens: int = option(10, "tokens N of the whole model", ge=1)
    first: int = option(2, "the first layer, from 0 on, whose attention reads them", ge=0)


@serial
@dataclass(frozen=True)
class ReadAside:
    """g softmax(q K^T scale) V for each head, K and V what the attention's own projections make of E.

    Shapes: E (N, d), g (heads,), q (B, heads, T, w), K and V (heads of keys, N, w) -> q's shape.
    Linear in: g. Cost: 2 T N w products a head, and N tokens through the two projections.
    """

    def tokens(self, E: Tensor, g: Tensor) -> Tensor:
        return E

    def aside(self, query: Tensor, keys: Tensor, values: Tensor, scale: float, E: Tensor, g: Tensor) -> Tensor:
        each = query.shape[1] // keys.shape[-3]  # queries of a head of keys
        keys, values = (x.repeat_interleave(each, -3) for x in (keys, values))
        share = torch.softmax(query @ keys.mT * scale, -1, dtype=torch.float32).to(query)
        return g[..., None, None] * (share @ values)


def layer(site: Site) -> int:
    """The first number in its name, which counts the layers."""
    found = re.search(r"(?:^|\.)(\d+)(?:\.|$)", site.name)
    return int(found.group(1)) if found else 0


@method(
    "aligner",
    Aligner,
    paper="Aligner: One Global Token is Worth Millions of Parameters When Aligning Large Language Models, "
    "arXiv 2312.05503",
    formula="N d, and one for each head of an attention from layer 2 on",
    kinds=("aside",),
    named=(),
    lr=9e-3,
    size=("tokens",),
)
def plan(sites: Sequence[Site], config: Aligner) -> Plan:
    """softmax(q K^T / sqrt(w)) V + g softmax(q K_E^T / sqrt(w)) V_E, before the output projection: K_E and V_E are what
    the attention's own frozen projections make of E, one for the whole model.

    Shapes: E (N, d), g (heads,) at each attention. Linear in: g. Cost: N tokens through two projections a layer, and
    2 T N w products a head; it cannot be merged. E begins with normal numbers of deviation 1 and g as zero, so that E
    learns from the second step on. E has no positions: its keys are not rotated, and nothing of it is in a cache or a
    mask. So queries' own positions count: the first token of a row is at 0, with padding before it too.
    Source: arXiv 2312.05503; github.com/mytemporalaccount/Aligner @4eb24b4, `lit_llama/aligner.py`: N 10, layers from 2
    on, one rate of 9e-3. Differs: nothing in Llama. Elsewhere the projections have their biases, and what a model does
    to keys or scores beside rotation (norms of keys, soft caps, sinks, relative positions) is not done here.
    Raises: CommonweightError where no attention is at or behind layer `first`, and where their widths differ.
    """
    mine = [s for s in sites if layer(s) >= config.first]
    if not mine:
        raise CommonweightError(
            f"aligner: first={config.first}, but {sites[-1].name} is the last of its "
            f"{counted(len(sites), 'attention')}; take a smaller first"
        )
    d = mine[0].inp
    if other := next((s for s in mine if s.inp != d), None):
        raise CommonweightError(
            f"aligner: {other.name} reads {other.inp} numbers a token, {mine[0].name} {d}; its tokens are of one "
            "width, name sites of one"
        )
    pools = {"E": Pool((config.tokens, d), Normal(1.0), lr=len(mine) ** 0.5)}  # its readers do not lower its rate
    pools |= {f"{s.name}.g": Pool((s.out,), ZEROS) for s in mine}
    reads = ({"E": Read(WHOLE, ("E",)), "g": Read(WHOLE, (f"{s.name}.g",))} for s in mine)
    return Plan(pools, tuple(Use(s.name, ReadAside(), r) for s, r in zip(mine, reads)))
