"""EfficientDM's QALoRA: a quantised weight and its low-rank update are rounded together."""

from __future__ import annotations

from typing import Literal

from ...address import WHOLE
from ...bind import Requantised
from ...builder import Anatomy, Layout
from ...core import ZEROS, Constant, Pool, Read, Use, Values, config, kaiming, option
from ..families import PARTS, families, instead
from ..grids import Grid
from ..registry import method


@config
class EfficientDM:
    bits: int = option(4, "bits of a weight", ge=1, le=8)
    ends: int | None = option(8, "bits in the first and the last block; none: as the others", ge=1, le=8)
    rank: int = option(32, "rank of the update", ge=1)
    acts: int = option(0, "bits of the input of each layer; 0: it is not rounded", ge=0, le=8)
    steps: int = option(1, "ranges of the input, one for each step of a sampler; `share.choose(small, t)`", ge=1)
    reach: float = option(8.0, "the range of an input begins as -reach to reach", gt=0)
    search: bool = option(True, "the best of 80 ranges of each row, by the mean of |error|^2.4")
    parts: Literal["attention", "qkv", "ffn", "all"] = option("all", "whose weights")
    seed: int = option(0, "of the updates' first numbers", ge=0)


@method(
    "efficientdm",
    EfficientDM,
    paper="EfficientDM: Efficient Quantization-Aware Fine-Tuning of Low-Bit Diffusion Models, arXiv 2310.03270",
    shares="nothing: weights of a few bits, which a low-rank update moves on their grid",
    sizes=lambda depth: [{"bits": 4}, {"bits": 2}],
)
def plan(anatomy: Anatomy, config: EfficientDM) -> Layout:
    """W = Q(deq(W_int) + s B A; delta, z) for each row, gradients straight through the rounding.

    Shapes: grid (out, in / (8 // b)) uint8, delta and z (out, 1), A (r, in), B (out, r); code (1,), low and size
    (steps,). With B = 0 it is W_int; `merge()` of a layer puts the update into the codes, and the layer answers the
    same. Stored: in / (8 // b) bytes a row. Source: arXiv 2310.03270; code ThisisBillhe/EfficientDM
    (`quant_scripts/quant_layer.py`). Differs: s, the mean of delta, multiplies the update, in the place of a learning
    rate of mean(delta) / 2500 for each layer: with Adam both move a layer by as much of its grid; delta and z of the
    weights do not train (theirs at a rate of 1e-6); the loss is `heal`'s, of a language model's answers; ranges of
    inputs begin at `reach`, ours.
    """
    pools: dict[str, Pool] = {}
    uses = []
    dtype = anatomy.blocks[0][0].dtype
    if config.acts:
        pools["step.code"] = Pool((1,), Values((0.0,)), train=False, dtype=dtype)
    for family in families(anatomy, "efficientdm", PARTS[config.parts]):
        for at, w in family:
            site, end = f"{at}.{w.name}", at in (0, anatomy.depth - 1)
            b = config.ends if end and config.ends is not None else config.bits
            grid = {p: Grid(site, b, p, 1, config.search, w.transposed) for p in ("codes", "scale", "zero")}
            r = min(config.rank, *w.shape)
            made = {
                "grid": Pool((w.out, -(-w.inp // (8 // b))), grid["codes"], train=False, dtype="uint8"),
                "scale": Pool((w.out, 1), grid["scale"], train=False, dtype=w.dtype),
                "zero": Pool((w.out, 1), grid["zero"], train=False, dtype=w.dtype),
                "A": Pool((r, w.inp), kaiming(w.inp), dtype=w.dtype),
                "B": Pool((w.out, r), ZEROS, dtype=w.dtype),
            }
            if config.acts:
                size = 2 * config.reach / (2**config.acts - 1)
                made["low"] = Pool((config.steps,), Constant(-config.reach), dtype=w.dtype)
                made["size"] = Pool((config.steps,), Constant(size), dtype=w.dtype)
            pools |= {f"{site}.{slot}": pool for slot, pool in made.items()}
            reads = {slot: Read(WHOLE, (f"{site}.{slot}",)) for slot in made}
            if config.acts:
                reads["code"] = Read(WHOLE, ("step.code",))
            uses.append(Use(site, Requantised(b, w.inp, config.acts), reads))
    return instead(anatomy, pools, uses, config.seed)
