"""Compacter: bottleneck adapters whose matrices are sums of Kronecker products with factors that all layers share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE, Kronecker
from ...bind import Bottleneck as Bind
from ...core import ZEROS, CommonweightError, Normal, Plan, Pool, Read, Site, Use, config, option
from ..registry import method
from .bottleneck import placed


@config
class Compacter:
    n: int = option(4, "PHM dimension: terms of the Kronecker sum and side of A_i; must divide every width", ge=1)
    rank: int = option(1, "rank k of every B_i = s_i t_i", ge=1)
    size: int | None = option(None, "width r of the bottleneck; none: d_out / reduction", ge=1)
    reduction: int = option(32, "how many times narrower than the layer's output, when size is none", ge=1)
    act: Literal["gelu", "relu"] = option("gelu", "the activation between the two matrices")
    placement: Literal["houlsby", "pfeiffer"] = option(
        "houlsby", "houlsby: after attention and feed-forward; pfeiffer: not after attention (Compacter++)"
    )


def _width(s: Site, config: Compacter) -> int:
    return config.size or s.out // config.reduction


def _unfit(config: Compacter, s: Site) -> str:
    r = _width(s, config)
    return f"n={config.n}" if r == 0 or r % config.n or s.out % config.n else ""


def _size(s: Site, config: Compacter) -> int:
    """The bottleneck's width, once n is known to divide it and d_out."""
    r = _width(s, config)
    if _unfit(config, s):
        valid = [n for n in range(1, 65) if r and r % n == 0 and s.out % n == 0]
        what = f"choose n from {valid}, or another size" if valid else "choose a smaller reduction, or give size"
        raise CommonweightError(
            f"compacter: {s.name}: width {s.out} and bottleneck {r} are not both multiples of n={config.n}; {what}"
        )
    return r


@method(
    "compacter",
    Compacter,
    paper="Compacter: Efficient Low-Rank Hypercomplex Adapter Layers, arXiv 2106.04647",
    formula="n^3 once, and sum over sites of 2 k (r + d_out) + r + d_out",
    roles=("attn_out", "down"),
    depthwise=False,
    unfit=_unfit,
    lr=3e-3,
    common="A; its own: s, t and the biases",
    size=("rank", "size"),
)
def plan(sites: Sequence[Site], config: Compacter) -> Plan:
    """W = sum_i A_i kron (s_i t_i) for W_down and W_up of a bottleneck adapter; one A for all of them.

    Shapes: A (n, n, n); for W (a, b): s (n, a / n, k), t (n, k, b / n). Linear in: A, s and t, each alone, as far as
    W; the adapter itself is not linear. Cost: as a bottleneck adapter, and n r d_out products to lay out each W.
    Source: arXiv 2106.04647, section 3. Differs: t of W_up starts at zero, so that the fresh adapter is
    the base; A, s and t start at scales for which W_down has the variance of a linear layer's (the official code:
    A of std 0.01, s and t Glorot). Raises: CommonweightError when n does not divide a width.
    """
    n, k = config.n, config.rank
    pools, uses = {"A": Pool((n, n, n), Normal(n**-0.5), scope="shared")}, []
    for site in placed("compacter", sites, config.placement):
        d, r = site.out, _size(site, config)
        reads = {}
        for slot, rows, cols, last in (("down", r, d, Normal((3 * d * k) ** -0.25)), ("up", d, r, ZEROS)):
            names = f"{site.name}.{slot}.s", f"{site.name}.{slot}.t"
            pools[names[0]] = Pool((n, rows // n, k), Normal((3 * cols * k) ** -0.25))
            pools[names[1]] = Pool((n, k, cols // n), last)
            reads[slot] = Read(Kronecker(), ("A", *names))
            pools[f"{site.name}.{slot}_bias"] = Pool((rows,), ZEROS)
            reads[f"{slot}_bias"] = Read(WHOLE, (f"{site.name}.{slot}_bias",))
        uses.append(Use(site.name, Bind(config.act), reads))
    return Plan(pools, tuple(uses))
