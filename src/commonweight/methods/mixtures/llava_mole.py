"""LLaVA-MoLE: low-rank experts of feed-forward layers; a token takes one of them, the same in all projections."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile

from ...address import WHOLE
from ...bind import LowRank, Mixture
from ...bind.mixture import Winner
from ...core import ZEROS, Plan, Pool, Read, Site, Use, config, kaiming, option
from ...core.names import by_layer
from ..registry import method
from .losses import largest, weighed


@config
class LLaVAMoLE:
    rank: int = option(8, "rank of each expert, and of the plain LoRA elsewhere", ge=1)
    experts: int = option(3, "experts of each feed-forward layer", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    dense: bool = option(False, "a token takes all experts, each by its share of a softmax")
    balance: float = option(1e-2, "weight of the load of experts in the loss, layer by layer", ge=0)


@method(
    "llava-mole",
    LLaVAMoLE,
    paper="LLaVA-MoLE: Sparse Mixture of LoRA Experts for Mitigating Data Conflicts in Instruction Finetuning MLLMs, "
    "arXiv 2401.16160",
    formula="sum over sites of r (d_in + d_out), E times in feed-forward layers, and E (d + 1) for each of these",
    kinds=("linear",),
    named=("router",),
    routing=lambda config: weighed(config.balance, 0.0, largest(1), "site"),
    size=("rank", "experts"),
)
def plan(sites: Sequence[Site], config: LLaVAMoLE) -> Plan:
    """h = W x + (alpha / r) B_k A_k x at the gate, up and down projection of a feed-forward layer, k = argmax(R z + c)
    with z what the layer is given; LoRA at all other sites. `balance` E sum_i f_i P_i of each layer joins the loss.

    Shapes: A (E r, d_in), B (d_out, E r), R (E, d), c (E,); all but B uniform, B zero at the start. Linear in: A and B,
    each alone. A choice is not weighed by its probability, so that the task's loss does not reach R: the load's does.
    Source: github.com/forwchen/LLaVA-MoLE @5876301, moe.py. Differs: what `balance` is, is not in the released code:
    1e-2 is that of Switch Transformers. Products are done for all experts.
    """
    scale = (2.0 * config.rank if config.alpha is None else config.alpha) / config.rank
    lender, pools, uses = lenders(sites), {}, []
    for s in sites:
        at = lender.get(s.name)
        n = config.rank * (1 if at is None else config.experts)
        mine = {"A": Pool((n, s.inp), kaiming(s.inp)), "B": Pool((s.out, n), ZEROS)}
        pools |= {f"{s.name}.{k}": p for k, p in mine.items()}
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in mine}
        if at is None:
            uses.append(Use(s.name, LowRank(scale, config.dropout), reads))
            continue
        if at is s:
            pools[f"{at.name}.router"] = Pool((config.experts, at.inp), kaiming(at.inp))
            pools[f"{at.name}.bias"] = Pool((config.experts,), kaiming(at.inp))
        reads |= {k: Read(WHOLE, (f"{at.name}.{k}",)) for k in ("router", "bias")}
        same = s.role != "down" or at is s  # it is given what the layer is given
        bind = Mixture(
            scale, dropout=config.dropout, gate=None if config.dense else Winner(),
            source="" if same else at.name.split("[")[0], lends=at is s, quiet=at is not s,
        )  # fmt: skip
        uses.append(Use(s.name, bind, reads))
    return Plan(pools, tuple(uses))


def lenders(sites: Sequence[Site]) -> dict[str, Site]:
    """{site of a feed-forward layer: the first site there, whose input is the layer's}."""
    by_name, out = {s.name: s for s in sites}, {}
    for names in by_layer([*by_name]):
        first: dict[str, Site] = {}  # of the gate and up projections of one module
        for n in names:
            if by_name[n].role in ("gate", "up"):
                out[n] = first.setdefault(n.rpartition(".")[0], by_name[n])
        for n in names:
            if by_name[n].role == "down":
                near = sorted(first.values(), key=lambda s: alike(s.name, n))
                out[n] = near[-1] if near else by_name[n]
    return out


def alike(a: str, b: str) -> int:
    """How many parts of two names are the same from the front."""
    return sum(1 for _ in takewhile(lambda p: p[0] == p[1], zip(a.split("."), b.split("."))))
