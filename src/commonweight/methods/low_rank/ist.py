"""IST: every step trains the updates of a few layers, those that the loss can do without least often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...core import Plan, Site, config, option
from ...core.names import by_layer
from ...core.schedule import Edit, Moment, Pools, State
from ..drawn import credited, drawn, sets
from ..registry import method
from .lora import LoRA
from .lora import plan as lora_plan


@config
class IST:
    rank: int = option(8, "rank r of the update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    active: float = option(0.25, "share of the layers that a step trains", gt=0, le=1)
    every: int = option(10, "steps between two looks at what layers are worth", ge=1)
    draws: int = option(3, "sets of layers that are compared in a look", ge=2)
    weakened: float = option(0.5, "share of the layers whose update is weakened in such a set", ge=0, le=1)
    factor: float = option(0.25, "what a weakened update is multiplied by", ge=0, le=1)
    pace: float = option(10.0, "how quickly the importance of a layer follows what was seen", ge=0)


@dataclass(frozen=True)
class Layers:
    """I: an importance for each layer, zero at the start. A step trains layers that are drawn by sigmoid(-I). At a
    look, sets of layers are drawn by sigmoid(I), p; with their updates weakened the loss is L_k, the reward
    R_k = exp(-L_k), and I_i += pace (R_k - mean R) p_i (1 - p_i) for i in set k."""

    config: IST
    layers: tuple[tuple[str, ...], ...]
    seed: int

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        state = {"importance": torch.zeros(len(self.layers), dtype=torch.float64)}
        return state, Edit(resting=self._resting(state, 0))

    def settled(self, step: int, steps: int) -> bool:
        return True

    def many(self, share: float) -> int:
        return max(1, int(share * len(self.layers)))

    def _resting(self, state: State, step: int) -> frozenset[str]:
        p = torch.sigmoid(-state["importance"])
        mine = drawn(self.seed, f"ist/{step}", p, self.many(self.config.active))
        return frozenset(n for i, names in enumerate(self.layers) if i not in mine for n in names)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        c = self.config
        if at.step % c.every == 0:
            p = torch.sigmoid(state["importance"])
            tried = sets(self.seed, f"ist/{at.step}", p, self.many(c.weakened), c.draws)
            importance = credited(
                state["importance"], p, tried, lambda mine: at.loss(self.weakened(at.pools, mine)), c.pace
            )
            state = {"importance": importance}
        last = at.step >= at.steps
        return state, Edit(resting=frozenset() if last else self._resting(state, at.step))

    def weakened(self, pools: Pools, layers: Sequence[int]) -> dict[str, Tensor]:
        return {n: pools[n] * self.config.factor for i in layers for n in self.layers[i] if n.endswith(".B")}


def _schedule(config: IST, plan: Plan) -> Layers:
    mine = [n for n, p in plan.pools.items() if p.train and n.endswith((".A", ".B"))]
    return Layers(config, tuple(map(tuple, by_layer(mine))), plan.seed)


@method(
    "ist",
    IST,
    paper="Layer-wise Importance Matters: Less Memory for Better Performance in PEFT of LLMs, arXiv 2410.11772",
    formula="sum over sites of r (d_in + d_out), of which a step trains a share",
    lr=2e-3,
    schedule=_schedule,
)
def plan(sites: Sequence[Site], config: IST) -> Plan:
    """h = W0 x + (alpha / r) B A x as LoRA; which layers train is drawn at every step.

    Linear in: A and B, each alone. Cost: `draws` forward passes at every look. Source: arXiv 2410.11772;
    github.com/antgroup/importance-aware-sparse-tuning-IST-paper @53ab149. As there, a layer whose weakening lowers the
    loss is trained less often, and a layer that rests keeps its moments. Differs: a look reads the step's own rows,
    without dropout, where the code takes rows of its own; it is over LoRA alone, where the paper takes other methods
    too. `adapt` and `Scheduled` choose layers; other loops train all of them.
    """
    lora = LoRA(
        rank=config.rank,
        alpha=config.alpha,
        dropout=config.dropout,
        ranks=(),
        alphas=(),
        rslora=False,
        bias=False,
        invocation=(),
    )
    return lora_plan(sites, lora)
