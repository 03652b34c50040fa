"""OFT: the input of every layer is turned block by block, so that angles between neurons stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from ...address import WHOLE
from ...bind import RotateBlocks
from ...core import ZEROS, CommonweightError, Plan, Pool, Read, Site, Use, config, option
from ..registry import method


def _splits(width: int, b: int, span: int) -> bool:
    return b > 1 and width % (b * span) == 0 and (span == 1 or b % 2 == 0)


def _asked(site: Site, config: Any, default: int) -> tuple[int, str]:
    """(the size b that a config says, 0 where there is none; how it says it)."""
    if config.blocks is not None:
        return (0 if site.inp % config.blocks else site.inp // config.blocks), f"blocks={config.blocks}"
    b = default if config.block_size is None else config.block_size
    return b, f"block_size={b}"


def unfit(default: int, span: Callable[[Any], int], config: Any, site: Site) -> str:
    """What does not split a site's input: "block_size=32"; "" where it does."""
    b, came = _asked(site, config, default)
    return "" if _splits(site.inp, b, span(config)) else came


def one(config: Any) -> int:
    return 1


def block_of(who: str, site: Site, config: Any, default: int, span: int = 1) -> int:
    """Size b of the blocks that a site's input splits into, `span` blocks at a time; from b or from their number."""
    (b, came), blocks = _asked(site, config, default), config.blocks
    if _splits(site.inp, b, span):
        return b
    fit = [b for b in range(2, site.inp + 1) if _splits(site.inp, b, span)]
    choose = fit if blocks is None else [site.inp // c for c in reversed(fit)]
    pairs = f" in groups of {span} blocks of even size" if span > 1 else ""
    name = came.split("=")[0]
    todo = f"choose {name} from {choose[:8]}, or exclude the site" if choose else "exclude the site"
    raise CommonweightError(f"{who}: {site.name}: input width {site.inp} does not split by {came}{pairs}; {todo}")


def said_twice(block_size: int | None, blocks: int | None) -> str | None:
    if block_size is None or blocks is None:
        return None
    return f"block_size={block_size} and blocks={blocks} say the same thing; give one of them"


@config
class OFT:
    block_size: int | None = option(None, "size b of the blocks; must divide every d_in; none: 32", ge=2)
    blocks: int | None = option(None, "number of blocks instead of their size", ge=1)
    share: bool = option(False, "one block for the whole width, repeated")
    neumann: bool = option(True, "Cayley map by a short Neumann series, nearly orthogonal; false: exactly")
    terms: int = option(5, "terms of the Neumann series", ge=2)
    eps: float | None = option(None, "constrained OFT: bound on the deviation from no rotation, for example 6e-5", gt=0)
    dropout: float = option(0.0, "chance that a block is left unturned, in training", ge=0, le=0.95)

    def check(self) -> str | None:
        return said_twice(self.block_size, self.blocks)


@method(
    "oft",
    OFT,
    paper="Controlling Text-to-Image Diffusion by Orthogonal Finetuning, arXiv 2306.07280",
    formula="sum over sites of d_in (b - 1) / 2; b (b - 1) / 2 with share",
    depthwise=False,
    unfit=partial(unfit, 32, one),
    lr=3e-3,
    size=("block_size",),
)
def plan(sites: Sequence[Site], config: OFT) -> Plan:
    """y = W (x blockdiag(R)) + bias, R = (I + Q) (I - Q)^-1 of a skew-symmetric Q that starts at zero.

    Shapes: R (d_in / b, b (b - 1) / 2), or (1, ...) with share: upper triangles of Q, row by row. Linear in: nothing.
    Cost: T d_in b products a site and (d_in / b) b^3 for the rotations; no dense weight, also in a mixed batch.
    Source: arXiv 2306.07280, section 3; on the input and with the Neumann series as in arXiv 2506.19847.
    Differs: blocks of the input as in PEFT, where the paper turns neurons. As in PEFT the exact map is
    (I - Q) (I + Q)^-1, which turns the other way than the series. eps binds the value that is used while PEFT
    overwrites the parameter. dropout draws every block apart (PEFT 0.21 has the option and does not apply it).
    Raises: when the block size does not divide a d_in.
    """
    pools, uses = {}, []
    for s in sites:
        b = block_of("oft", s, config, 32)
        pools[f"{s.name}.R"] = Pool((1 if config.share else s.inp // b, b * (b - 1) // 2), ZEROS)
        bind = RotateBlocks(b, config.terms if config.neumann else 0, config.eps or 0.0, config.dropout)
        uses.append(Use(s.name, bind, {"R": Read(WHOLE, (f"{s.name}.R",))}))
    return Plan(pools, tuple(uses))
