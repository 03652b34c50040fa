"""SReT: each block several times in a row, a projection behind each use, trained factors of the residuals."""

from __future__ import annotations

from typing import Literal

from ...address import WHOLE
from ...bind import Projected, Times
from ...builder import Anatomy, Layout
from ...core import ONES, ZEROS, CommonweightError, Pool, Read, Use, build, config, kaiming, option
from ..registry import method
from .recursive import Recursive
from .recursive import plan as recursive


@config
class SReT:
    loops: int = option(2, "how often each block is used, in a row", ge=1)
    ratio: float = option(
        0.5, "width of a projection's inner layer, as a share of the model's; 0: no projections", ge=0
    )
    factors: bool = option(
        True, "trained factors of the residuals, the block's, and of the projections, each use's own"
    )
    init: Literal["stepwise", "average", "lower", "upper"] = option(
        "average", "which layers a block begins with, as relaxed recursion has it"
    )


@method(
    "sret",
    SReT,
    paper="Sliced Recursive Transformer, arXiv 2111.09297",
    shares="each block with itself, several times in a row, a projection of its own behind each use",
    sizes=lambda depth: [{"loops": 2}, {"loops": 3}],
)
def plan(anatomy: Anatomy, config: SReT) -> Layout:
    """y = x + p att(norm x); z = c (y + q ffn(norm y)); then b1 z + b2 W2 gelu(W1 norm z) behind each use.

    p, q, c are the block's and b1, b2, W1, W2 each use's own. Parameters: L / loops blocks and 3 numbers for each;
    2 ratio d^2 + d + 2 for each use. Everything begins as the tied model: factors are 1, W2 is 0. Source: arXiv
    2111.09297, section 3; code szq0214/SReT, SReT.py. Differs: that code has four factors, a1 x + a2 att, a3 y + a4
    ffn; norms do not see a factor of their input, so three say the same: p = a2 / a1, q = a4 / (a1 a3), c = a1 a3.
    Attention in groups of permuted tokens ("sliced") is of images and not causal, and not made; nor is W2 drawn.
    Raises: CommonweightError where norms stand behind the residuals, as in BERT.
    """
    if any(w.name.endswith("output.LayerNorm.weight") for w in anatomy.blocks[0]):
        raise CommonweightError("sret scales what is added to a residual; here norms stand behind the residuals (BERT)")
    layout = recursive(anatomy, build(Recursive, {"loops": config.loops, "order": "sequence", "init": config.init}))
    d, dtype = anatomy.width, anatomy.blocks[0][0].dtype
    inner = round(config.ratio * d)
    pools: dict[str, Pool] = {}
    uses: list[Use] = []
    for at, layer in enumerate(layout.like):
        unit = at // config.loops
        behind = {
            w.role: w.module for w in anatomy.blocks[layer] if w.role in ("attn_out", "down") and w.kind == "linear"
        }
        if config.factors:
            for what, site in {**behind, "block": ""}.items():
                name = f"factor.{what}.{unit}"
                pools[name] = Pool((1,), ONES, dtype=dtype)
                uses.append(Use(f"{at}.{site}" if site else str(at), Times(), {"v": Read(WHOLE, (name,))}))
        if inner:
            own = {
                "b": Pool((2,), ONES, train=config.factors, dtype=dtype), "norm": Pool((d,), ONES, dtype=dtype),
                "W1": Pool((inner, d), kaiming(d), dtype=dtype), "W2": Pool((d, inner), ZEROS, dtype=dtype),
            }  # fmt: skip
            pools |= {f"projection.{at}.{slot}": pool for slot, pool in own.items()}
            uses.append(Use(str(at), Projected(), {s: Read(WHOLE, (f"projection.{at}.{s}",)) for s in own}))
    return layout.plus(pools, uses)
