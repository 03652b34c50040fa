"""LoRETTA_rep: LoRA whose two factors are tensor trains."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import TensorTrain, modes
from ...bind import LowRank
from ...core import ZEROS, Normal, Plan, Pool, Read, Site, Use, config, option
from ..registry import method


@config
class LoRETTA:
    rank: int = option(8, "rank r of every site's update", ge=1)
    train_rank: int = option(5, "rank R between the cores of a tensor train", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)


def train(name: str, rows: int, cols: int, rank: int, transpose: bool, zero: bool) -> tuple[dict[str, Pool], Read]:
    """The cores of a matrix (rows, cols), modes of the rows first, the largest in the middle, and its read.

    zero: the last core is zero. Else the numbers have a deviation near (rows + cols)^(-1/2), as in the released code.
    """
    sizes = (*modes(rows), *reversed(modes(cols)))
    std = (rows + cols) ** (-0.5 / len(sizes))
    pools: dict[str, Pool] = {}
    for k, n in enumerate(sizes):
        last = k == len(sizes) - 1
        shape = (n, rank) if k == 0 else (rank, n) if last else (rank, n, rank)
        pools[f"{name}.{k}"] = Pool(shape, ZEROS if last and zero else Normal(std if last else std * rank**-0.5))
    return pools, Read(TensorTrain((rows, cols), transpose), tuple(pools))


@method(
    "loretta",
    LoRETTA,
    paper="LoRETTA: Low-Rank Economic Tensor-Train Adaptation for Ultra-Low-Parameter Fine-Tuning of Large Language "
    "Models, arXiv 2402.11417 (LoRETTA_rep)",
    formula="sum over sites, and over A and B, of n_1 R + R^2 (n_2 + ... ) + R n_d, n_1 ... n_d = r d",
    lr=4e-3,
    size=("train_rank", "rank"),
)
def plan(sites: Sequence[Site], config: LoRETTA) -> Plan:
    """h = W0 x + (alpha / r) B A x, A^T (d_in, r) and B^T (r, d_out) tensor trains of rank R; B is zero at the start.

    Linear in: each core alone. Cost: as LoRA, and R products for each number of A and B, once a step.
    Source: arXiv 2402.11417, section 3; github.com/yifanycc/loretta @c66bbb3. Differs: the last core of B is zero at
    the start, where theirs is random and a fresh tenant not the base; modes of any width by a rule (`address.modes`),
    theirs stand in a table, whose counts are ours for 768; layer norms and the classifier's first layer are not
    trained as theirs are.
    """
    r, R = config.rank, config.train_rank
    alpha = 2.0 * r if config.alpha is None else config.alpha
    bind, pools, uses = LowRank(alpha / r, config.dropout), {}, []
    for s in sites:
        a, A = train(f"{s.name}.A", s.inp, r, R, True, False)
        b, B = train(f"{s.name}.B", r, s.out, R, True, True)
        pools |= a | b
        uses.append(Use(s.name, bind, {"A": A, "B": B}))
    return Plan(pools, tuple(uses))
