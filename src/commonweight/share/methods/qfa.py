"""LLM-QFA: one store of a model in several bit widths, each layer's width to be chosen at any time."""

from __future__ import annotations

from typing import Literal

from ...address import WHOLE
from ...bind import Elastic
from ...builder import Anatomy, Layout
from ...core import ZEROS, CommonweightError, Pool, Read, Use, Values, config, kaiming, option
from ..families import PARTS, families, instead
from ..grids import Grid
from ..registry import method


@config
class QFA:
    bits: tuple[int, ...] = option((2, 3, 4), "the bit widths that every layer is stored in")
    start: int | None = option(None, "the one that is in use at first; none: the largest", ge=1)
    group: int = option(32, "columns of a row that have one scale", ge=1)
    rank: int = option(8, "rank of the update of each layer at each width", ge=1)
    parts: Literal["attention", "qkv", "ffn", "all"] = option("all", "whose weights")
    seed: int = option(0, "of the updates' first numbers", ge=0)

    def check(self) -> str | None:
        if not self.bits or not all(1 <= b <= 8 for b in self.bits) or len(set(self.bits)) < len(self.bits):
            return f"bits is {self.bits}; wanted different numbers from 1 to 8"
        return None if self.start in (None, *self.bits) else f"start={self.start} is none of bits={self.bits}"


@method(
    "qfa",
    QFA,
    paper="One QuantLLM for ALL: Fine-tuning Quantized LLMs Once for Efficient Deployments, arXiv 2405.20202",
    shares="nothing but the rest of the model: every linear layer in several bit widths, to be chosen layer by layer",
    sizes=lambda depth: [{"bits": (2, 3, 4)}, {"bits": (4,)}],
)
def plan(anatomy: Anatomy, config: QFA) -> Layout:
    """y = deq_b(W_(l,b)) x + B_(l,b) A_(l,b) pool(x), b the width chosen for layer l, pool the mean of each group.

    Shapes: grid (out, in / (8 // b)) uint8, scale and zero (out, in / g), A (r, in / g), B (out, r), for each b.
    Parameters that train: sum of r (in / g + out) for each layer and width; a step trains the chosen ones alone.
    `share.choose(small, bits)`, or {part of a name: bits}; `share.heal(..., sample=share.sampling.bits(small))` draws
    them. `merge()` of a layer puts its updates into the zero points.
    Source: summaries of arXiv 2405.20202 (no code was found); QA-LoRA, arXiv 2309.14717. Differs: grids are of the
    smallest and largest number of a group, where the paper has GPTQ's; the mean width of a step is drawn evenly, where
    the paper goes up and down a triangle, which spends as many steps on each; rank and group are ours.
    Raises: CommonweightError where the group does not divide a width.
    """
    pools: dict[str, Pool] = {}
    uses = []
    for family in families(anatomy, "qfa", PARTS[config.parts]):
        for at, w in family:
            site = f"{at}.{w.name}"
            if w.inp % config.group:
                raise CommonweightError(f"qfa: {site}: its {w.inp} columns are no multiple of group={config.group}")
            groups, r = w.inp // config.group, config.rank
            start = float(config.start or max(config.bits))
            made = {"code": Pool((1,), Values((start,)), train=False, dtype=w.dtype)}
            for b in config.bits:
                grid = {p: Grid(site, b, p, groups, transposed=w.transposed) for p in ("codes", "scale", "zero")}
                wide = -(-w.inp // (8 // b))
                made[f"grid{b}"] = Pool((w.out, wide), grid["codes"], train=False, dtype="uint8")
                made[f"scale{b}"] = Pool((w.out, groups), grid["scale"], train=False, dtype=w.dtype)
                made[f"zero{b}"] = Pool((w.out, groups), grid["zero"], train=False, dtype=w.dtype)
                made[f"A{b}"] = Pool((r, groups), kaiming(groups), dtype=w.dtype)
                made[f"B{b}"] = Pool((w.out, r), ZEROS, dtype=w.dtype)
            pools |= {f"{site}.{slot}": pool for slot, pool in made.items()}
            reads = {slot: Read(WHOLE, (f"{site}.{slot}",)) for slot in made}
            uses.append(Use(site, Elastic(config.bits, w.inp), reads))
    return instead(anatomy, pools, uses, config.seed)
