"""Magnitude invariant parametrizations: weights that a small network makes of a code, around trained ones."""

from __future__ import annotations

import math
from typing import Literal

from ...address import Magnitudes
from ...bind import Replace
from ...builder import Anatomy, Layout
from ...core import Pool, Read, Use, config, option
from .. import generated as net
from ..families import PARTS, families, instead
from ..registry import method


@config
class MIP:
    code: tuple[float, ...] = option((0.5,), "gamma, each number in [0, 1]; `share.choose` sets another")
    hidden: tuple[int, ...] = option((16, 64), "widths of the network's hidden layers, the last k")
    parts: Literal["attention", "qkv", "ffn", "all"] = option("ffn", "whose weights it makes")
    init: Literal["zero", "fan_out"] = option("zero", "zero: the fresh model is the original; fan_out: as the paper")
    seed: int = option(0, "of the network's first numbers", ge=0)

    def check(self) -> str | None:
        if not self.code or not all(0 <= g <= 1 for g in self.code):
            return f"code is {self.code}; wanted numbers from 0 to 1, which the encoding tells apart"
        return None if self.hidden and min(self.hidden) > 0 else f"hidden is {self.hidden}; wanted widths"


@method(
    "mip",
    MIP,
    paper="Magnitude Invariant Parametrizations Improve Hypernetwork Learning, arXiv 2304.07645",
    shares="one network that makes every weight of a code, as a change of a trained one",
    sizes=lambda depth: [{"hidden": (8, 2)}],
)
def plan(anatomy: Anatomy, config: MIP) -> Layout:
    """theta = theta_0 + sum_k phi_k(E(gamma)) D_k, E = [cos(pi gamma / 2), sin(pi gamma / 2)], for any gamma.

    Shapes: gamma (c,), phi (k,), D (k, *s) for each weight, theta_0 its own. Parameters: (k + 1) |theta|, and the
    network: this is no smaller model, it is many in one, to be asked for by `share.choose(small, code=...)`. Cost: k
    products for each number at each forward pass. With D = 0 it is the original.
    Source: arXiv 2304.07645, section 3; code JJGO/hyperlight (`hypernet/model.py`, `encoding.py`): kaiming fan-out,
    LeakyReLU, no activation behind the last layer, theta_0 its bias, from a pretrained model. Differs: the last layer
    starts at zero by default, since theirs does not begin with the pretrained network; weights of `parts` alone.
    """
    dtype = anatomy.blocks[0][0].dtype
    pools = {"mip.code": net.code(config.code, dtype)}
    made = net.layers("mip", (2 * len(config.code), *config.hidden), dtype, "out")
    pools |= made
    uses = []
    for family in families(anatomy, "mip", PARTS[config.parts]):
        for at, w in family:
            site = f"{at}.{w.name}"
            std = net.kaiming_rows(math.prod(w.shape), config.init)
            pools[f"{site}.bank"] = Pool((1 + config.hidden[-1], *w.shape), net.Bank(site, std=std), dtype=w.dtype)
            uses.append(Use(site, Replace(), {"weight": Read(Magnitudes(), (f"{site}.bank", "mip.code", *made))}))
    return instead(anatomy, pools, uses, config.seed)
