"""AlphaTuning: the base's weights as binary codes that all tenants share, and the codes' scales trained by each."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Coded
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Rng, Site, Source, Use, config, option, serial
from ..registry import method
from ..widths import divides

ROUNDS = 15  # of refinement, as in the code of BCQ; it stops where no code changes any more


@config
class AlphaTuning:
    bits: int = option(4, "binary codes q per number of a weight", ge=1, le=8)
    group: int | None = option(None, "columns with one scale, a divisor of every width; none: a whole row", ge=1)
    train: Literal["first", "all"] = option("first", "which scales of a row are trained: the largest, or all q")
    rounds: int = option(ROUNDS, "rounds of refinement of the codes; 0: greedy codes, which are the paper's", ge=0)


def binary_codes(w: Tensor, bits: int, rounds: int = ROUNDS) -> tuple[Tensor, Tensor]:
    """(codes (n, m) of whole numbers below 2^q, alpha (n, q) >= 0, falling): row by row, w (n, m) is about the sum of
    alpha_i b_i, where b_i is +1 where bit i of the code is set, else -1.

    Greedy: b_i = sign(rest), alpha_i = mean |rest|; then by turns alpha by least squares for the codes, and for every
    number the nearest of the 2^q sums. In float64. Cost: a search, two gathers and two additions per number and round.
    Source: the BCQ of arXiv 2210.03858 and 2206.09557, whose refinement is Xu et al., arXiv 1802.00150, algorithm 2.
    """
    w = w.double().contiguous()
    codes, alpha, rest = torch.zeros(w.shape, dtype=torch.int64), w.new_zeros(len(w), bits), w.clone()
    for i in range(bits):
        alpha[:, i] = rest.abs().mean(1)
        codes += (rest >= 0).long() << i
        rest = rest - torch.where(rest >= 0, 1.0, -1.0) * alpha[:, i, None]
    every = 2.0 * (torch.arange(2**bits)[:, None] >> torch.arange(bits) & 1).double() - 1  # (2^q, q)
    tiny = 1e-9 * w.shape[1] * torch.eye(bits, dtype=w.dtype)  # two equal codes in a short row: no unique alpha
    for _ in range(rounds):
        numbers, sums = (w.new_zeros(len(w), 2**bits).scatter_add_(1, codes, v) for v in (torch.ones_like(w), w))
        gram = torch.einsum("nl,li,lj->nij", numbers, every, every) + tiny
        alpha = torch.linalg.solve(gram, sums @ every).abs().sort(1, descending=True).values
        levels, order = (alpha @ every.T).sort(1)
        before, codes = codes, order.gather(1, torch.searchsorted((levels[:, 1:] + levels[:, :-1]) / 2, w))
        if torch.equal(before, codes):
            break
    return codes, alpha


_MADE: WeakKeyDictionary[Source, dict[tuple[str, int, int, int], tuple[Tensor, Tensor]]] = WeakKeyDictionary()


def quantised(base: Source, site: str, bits: int, groups: int, rounds: int) -> tuple[Tensor, Tensor]:
    """(codes (d_out, d_in) uint8, alpha (q, d_out, g)) of a weight in bfloat16; made once for both pools."""
    made, key = _MADE.setdefault(base, {}), (site, bits, groups, rounds)
    if key not in made:
        w = base.weight(site).bfloat16().float().cpu()
        codes, alpha = binary_codes(w.reshape(len(w) * groups, -1), bits, rounds)
        scales = alpha.float().view(len(w), groups, bits).permute(2, 0, 1)
        made[key] = codes.to(torch.uint8).reshape(w.shape), scales
    return made[key]


@serial
@dataclass(frozen=True)
class Codes:
    """Binary codes of a site's weight (d_out, d_in), or the scales (q, d_out, g) that belong to them."""

    site: str
    bits: int
    groups: int
    scales: bool = False
    rounds: int = ROUNDS
    derived: ClassVar[bool] = True

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return quantised(base, self.site, self.bits, self.groups, self.rounds)[self.scales].contiguous()


@method(
    "alphatuning",
    AlphaTuning,
    paper="AlphaTuning: Quantization-Aware Parameter-Efficient Adaptation of Large-Scale Pre-Trained Language Models, "
    "arXiv 2210.03858",
    formula="sum over sites of d_out; times bits with train=all, times d_in / group with groups",
    unfit=divides("group", "inp"),
    lr=1e-2,
    fresh="the weights are replaced by their binary codes, which lose 12 % of a weight's norm at 4 bits (in MiniLM)",
    size=("train", "-group"),
)
def plan(sites: Sequence[Site], config: AlphaTuning) -> Plan:
    """W' = sum_i diag(a_i) B_i in place of W, a_1 = alpha_1 (1 + gain): B_i of +-1 and alpha_i are W's, frozen.

    Shapes: codes (d_out, d_in) uint8, one bit for each B_i, alpha (q, d_out, g), gain (1 or q, d_out, g), g = 1 or
    d_in / group. Linear in: gain (affine). Cost: see `commonweight.bind.Coded`; a byte per weight for the codes, once
    for all tenants of a host, made anew from the base (10 to 20 seconds for 10 M weights) and in no file. Of a weight's
    norm in MiniLM, q = 2, 3, 4, 5, 6 bits lose 35, 20, 12, 7, 6 % by rows; groups of 128 gain little (11 % at q = 4).
    Source: arXiv 2210.03858, sections 3 and 4, by detailed notes of it: rows, only alpha_1, no dropout. Differs: the
    paper takes greedy codes (rounds=0), since refined ones gave its GPT-2 nothing; MiniLM gains (docs/LOG.md).
    What is trained is the scales' relative change, so that one learning rate fits all layers, in place of a gradient
    over the group's size; the host keeps the frozen weight beside the codes, since others read it: what falls is a
    tenant's bytes, not the base's memory; W is taken in bfloat16, so that a file fits copies of the base in both
    precisions. Raises: when group does not divide a width.
    """
    pools, uses, q = {}, [], config.bits
    for s in sites:
        width = config.group or s.inp
        if s.inp % width:
            choose = [d for d in range(min(s.inp, 256), 0, -1) if s.inp % d == 0][:4]
            raise CommonweightError(
                f"alphatuning: {s.name}: width {s.inp} is not a multiple of group={width}; choose a group that divides "
                f"every width, here {choose}, or exclude the site"
            )
        g, n = s.inp // width, s.name
        pools[f"{n}.codes"] = Pool(
            (s.out, s.inp), Codes(n, q, g, False, config.rounds), train=False, save=False, dtype="uint8"
        )
        pools[f"{n}.alpha"] = Pool((q, s.out, g), Codes(n, q, g, True, config.rounds), train=False, save=False)
        pools[f"{n}.gain"] = Pool((1 if config.train == "first" else q, s.out, g), ZEROS)
        uses.append(Use(n, Coded(), {k: Read(WHOLE, (f"{n}.{k}",)) for k in ("codes", "alpha", "gain")}))
    return Plan(pools, tuple(uses))
