"""LoRETTA_adp: bottleneck adapters whose two matrices are tensor trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from ...address import WHOLE
from ...bind import Bottleneck as Bind
from ...core import ZEROS, Plan, Pool, Read, Site, Uniform, Use, config, option
from ..low_rank.loretta import train
from ..registry import method
from .bottleneck import placed


@config
class LoRETTAadp:
    size: int = option(64, "width r of the bottleneck", ge=1)
    train_rank: int = option(5, "rank R between the cores of a tensor train", ge=1)
    act: Literal["gelu", "relu"] = option("relu", "the activation between the two matrices")
    placement: Literal["houlsby", "pfeiffer"] = option(
        "houlsby", "houlsby: every site, by default after attention and feed-forward; pfeiffer: not after attention"
    )


@method(
    "loretta-adp",
    LoRETTAadp,
    paper="LoRETTA: Low-Rank Economic Tensor-Train Adaptation for Ultra-Low-Parameter Fine-Tuning of Large Language "
    "Models, arXiv 2402.11417",
    formula="sum over sites of the cores of both, n_1 R + R^2 (n_2 + ...) + R n_d each, and r + d_out",
    roles=("attn_out", "down"),
    depthwise=False,
    lr=3e-3,
    size=("train_rank", "size"),
)
def plan(sites: Sequence[Site], config: LoRETTAadp) -> Plan:
    """y' = y + U act(D y + b_D) + b_U, D^T (d_out, r) and U^T (r, d_out) tensor trains of rank R; U starts at zero.

    Linear in: each core of U and b_U, alone. Cost: as `bottleneck`, and R products for each number of D and U, once a
    step. Source: arXiv 2402.11417, section 3; github.com/yifanycc/loretta @c66bbb3. Differs: the last core of U and b_U
    are zero at the start, where theirs are random; always after attention and feed-forward, as theirs in BERT, where in
    a Llama they put it before the gate and up projections and after the down projection; modes of any width by a rule;
    layer norms and the classifier's first layer are not trained.
    """
    pools, uses, r, R = {}, [], config.size, config.train_rank
    for s in placed("loretta-adp", sites, config.placement):
        down, D = train(f"{s.name}.down", s.out, r, R, True, False)
        up, U = train(f"{s.name}.up", r, s.out, R, True, True)
        biases = {
            f"{s.name}.down_bias": Pool((r,), Uniform(r**-0.5)),
            f"{s.name}.up_bias": Pool((s.out,), ZEROS),
        }
        pools |= down | up | biases
        rest = {n.rpartition(".")[2]: Read(WHOLE, (n,)) for n in biases}
        uses.append(Use(s.name, Bind(config.act), {"down": D, "up": U, **rest}))
    return Plan(pools, tuple(uses))
