"""Polyhistor: adapters whose matrices small hypernetworks make of each task's code, enlarged to each layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE, Enlarged
from ...bind import Bottleneck as Bind
from ...core import ONES, ZEROS, CommonweightError, Normal, Plan, Pool, Read, Site, Use, config, option
from ..adapters.bottleneck import placed
from ..registry import method
from ..widths import divides


@config
class Polyhistor:
    code: int = option(8, "numbers m of a task's code", ge=1)
    size: int = option(16, "width of the adapter", ge=1)
    rank: int = option(4, "rank k of what the hypernetworks make", ge=1)
    stretch: int = option(2, "how many times the template is enlarged each way; must divide size and every width", ge=1)
    act: Literal["gelu", "relu"] = option("gelu", "the activation between the two matrices")
    placement: Literal["houlsby", "pfeiffer"] = option("houlsby", "where, as in the method bottleneck")


@method(
    "polyhistor",
    Polyhistor,
    paper="Polyhistor: Parameter-Efficient Multi-Task Adaptation for Dense Vision Tasks, arXiv 2210.03265",
    formula="m k (2 r + sum over widths of 2 d) / s once, and m, and sum over sites of 2 s^2 + r + d_out",
    roles=("attn_out", "down"),
    depthwise=False,
    unfit=divides("stretch", "out"),
    lr=3e-3,
    common="the hypernetworks; its own: the code, the enlarging kernels and the biases",
    size=("rank", "code", "size"),
)
def plan(sites: Sequence[Site], config: Polyhistor) -> Plan:
    """W = S_l kron (H1(e) H2(e)) for both matrices of an adapter at every layer l, H(e) = sum_i e_i H_i.

    Shapes: e (m,); of a matrix (a, b): H1 (m, a / s, k), H2 (m, k, b / s), S_l (s, s). Tasks of a common have the
    hypernetworks in common: another e changes that task alone. S of the second matrix starts at zero, so that the fresh
    adapter is the base; with s = 1 it is a plain factorised hypernetwork. Linear in: each pool alone, as far as W.
    Cost: as a bottleneck adapter, and its two matrices at each pass.
    Source: arXiv 2210.03265, the abstract, which is all that was found, and no code: factorised hypernetworks of a
    task's code, template kernels that are scaled to each layer. Shapes, start and sizes are ours.
    Raises: CommonweightError when `stretch` does not divide a width.
    """
    s, m, k, r = config.stretch, config.code, config.rank, config.size
    pools: dict[str, Pool] = {"code": Pool((m,), ONES)}
    uses = []
    for site in placed("polyhistor", sites, config.placement):
        d = site.out
        if d % s or r % s:
            raise CommonweightError(
                f"polyhistor: {site.name}: width {d} or size {r} is no multiple of stretch={s}; choose another"
            )
        reads = {}
        for slot, rows, cols in (("down", r, d), ("up", d, r)):
            left, right, mine = f"{slot}.{d}.H1", f"{slot}.{d}.H2", f"{site.name}.{slot}.S"
            std = (3 * cols / s * k) ** -0.25 * m**-0.5
            pools.setdefault(left, Pool((m, rows // s, k), Normal(std), scope="shared"))
            pools.setdefault(right, Pool((m, k, cols // s), Normal(std), scope="shared"))
            pools[mine] = Pool((s, s), ONES if slot == "down" else ZEROS)
            reads[slot] = Read(Enlarged(), (left, right, "code", mine))
            pools[f"{site.name}.{slot}_bias"] = Pool((rows,), ZEROS)
            reads[f"{slot}_bias"] = Read(WHOLE, (f"{site.name}.{slot}_bias",))
        uses.append(Use(site.name, Bind(config.act), reads))
    return Plan(pools, tuple(uses))
