"""GHN-3's tiles: every matrix is a small one, repeated along both sides."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from ...address import Repeated
from ...bind import Replace
from ...builder import Anatomy, Layout
from ...core import Init, Normal, Pool, Read, Rng, Use, config, option, serial
from .. import families as fam
from ..registry import method


@config
class Tiled:
    size: int = option(64, "sides of a tile, cut to those of its matrix", ge=1)
    common: bool = option(False, "one tile for a matrix of all depths; else each depth has its own")
    init: Literal["mean", "normal"] = option(
        "mean", "mean: of all copies, which is nearest to the weights; normal: as GHN-3 scales what it predicts"
    )
    parts: Literal["all", "attention", "qkv", "ffn"] = option("ffn", "which matrices")
    seed: int = option(0, "of init=normal", ge=0)


@serial
@dataclass(frozen=True)
class Copies:
    """The tile nearest to several weights: the mean of all numbers that read one of its own."""

    derived = True
    of: tuple[str, ...]

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Any) -> Tensor:
        total, count = torch.zeros(shape), torch.zeros(shape)
        for name in self.of:
            w = base.stored(name).float().cpu()
            at = (torch.arange(w.shape[0])[:, None] % shape[0]) * shape[1] + torch.arange(w.shape[1])[None] % shape[1]
            total.view(-1).index_add_(0, at.flatten(), w.flatten())
            count.view(-1).index_add_(0, at.flatten(), torch.ones(w.numel()))
        return total / count


@method(
    "tiled",
    Tiled,
    paper="Can We Scale Transformers to Predict Parameters of Diverse ImageNet Models? (GHN-3), arXiv 2303.04143",
    shares="a tile of each matrix with itself, many times",
    sizes=lambda depth: [{"size": 64}, {"size": 256}],
)
def plan(anatomy: Anatomy, config: Tiled) -> Layout:
    """W_ij = T_(i mod s, j mod s).

    Parameters: s^2 at most for each matrix, or for each kind of matrix with `common`. With s as large as the matrix it
    is the original. FLOPs do not fall. Source: arXiv 2303.04143; code SamsungSAILMontreal/ghn3 (nn.py): what its
    decoder predicts, 64 x 64 for each operation, is repeated and cut so, and multiplied by sqrt(2 / fan_in). Only that
    is here. The network that predicts tiles (three layers of a graph transformer over a model's operations) is not
    built: found were its sizes, its attention's bias by distance and its decoder of matrices; not its list of
    operations, how shapes are coded, the decoder of vectors, nor the set of architectures that it learns on. Here the
    tile begins with the mean of a pretrained weight's copies. Channels that are exact copies stay so in training.
    """
    pools: dict[str, Pool] = {}
    uses = []
    for family in fam.families(anatomy, "tiled", fam.PARTS[config.parts]):
        for at, w in family:
            site = f"{at}.{w.name}"
            name = f"tile.{fam.name_of(family)}" if config.common else f"{site}.tile"
            of = fam.stored(family) if config.common else (site,)
            first: Init = Copies(of) if config.init == "mean" else Normal((2 / w.inp) ** 0.5)
            shape = (min(config.size, w.shape[0]), min(config.size, w.shape[1]))
            pools.setdefault(name, Pool(shape, first, dtype=w.dtype))
            uses.append(Use(site, Replace(), {"weight": Read(Repeated(w.shape), (name,))}))  # type: ignore[arg-type]
    return fam.instead(anatomy, pools, uses, config.seed)
