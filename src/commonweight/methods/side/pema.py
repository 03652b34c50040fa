"""PEMA: a second distribution over the vocabulary from a map of the last state, mixed in less with each token."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Lends, SecondHead
from ...core import (
    ZEROS,
    CommonweightError,
    Constant,
    Plan,
    Pool,
    Read,
    Rng,
    Site,
    Use,
    config,
    counted,
    kaiming,
    option,
)
from ...core.schedule import Edit, Moment, Pools, State
from ..mixtures.losses import mean
from ..registry import method
from ..said import RouterLoss, Said


@config
class PEMA:
    rank: int = option(512, "rank r of the map of the last state", ge=1)
    alpha: float = option(1.0, "numerator of the scale alpha / rank", gt=0)
    dropout: float = option(0.2, "dropout on the last state, in training", ge=0, le=0.95)
    kappa: float = option(
        0.2, "weight of the last state's reconstruction in the loss; the rest is of tokens", ge=0, le=0.99
    )
    share: float = option(0.9, "share of the second distribution at the first token of an answer", gt=0, le=1)
    length: int | None = option(
        None, "tokens of an answer within which the share falls to zero; none: it does not fall", ge=1
    )
    invocation: tuple[int, ...] = option((), "with length: token ids behind which an answer begins")
    first: float = option(0.3, "share of the steps that learn to reconstruct the last state alone", ge=0, le=0.9)
    form: Literal["whole", "stored"] = option(
        "whole", "whole: with what reconstructs; stored: what answers, as a trained tenant is"
    )

    def check(self) -> str | None:
        if bool(self.invocation) != (self.length is not None):
            return (
                f"length={self.length} with invocation={self.invocation}: the share falls from where an answer begins, "
                "which token ids say; give both, or neither"
            )
        return None


@dataclass(frozen=True)
class Stages:
    """First A and R alone, by the reconstruction (kappa = 1). Then A begins anew, R stays, and B trains too."""

    config: PEMA
    site: str
    width: int
    seed: int

    def _all(self, slot: str) -> str:
        return f"{self.site}.{slot}"

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        if self.config.form == "stored" or not self.last(steps):
            return {}, Edit()
        values = {self._all("kappa"): torch.ones_like(pools[self._all("kappa")])}
        return {}, Edit(values=values, resting=frozenset({self._all("B")}))

    def last(self, steps: int) -> int:
        return min(round(self.config.first * steps), steps - 1)

    def settled(self, step: int, steps: int) -> bool:
        return self.config.form == "stored" or step > self.last(steps)

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        if self.config.form == "stored" or at.step != self.last(at.steps):
            return state, Edit()
        A, kappa = at.pools[self._all("A")], at.pools[self._all("kappa")]
        drawn = kaiming(self.width)(tuple(A.shape), Rng(self.seed, f"{self._all('A')}/second"), None)  # type: ignore[arg-type]
        values = {self._all("A"): drawn.to(A), self._all("kappa"): torch.full_like(kappa, self.config.kappa)}
        forgets = {self._all("A"): torch.zeros_like(A)}
        return state, Edit(values=values, moments=forgets, resting=frozenset({self._all("R")}))


def _schedule(config: PEMA, plan: Plan) -> Stages:
    found = ((u.site, plan.pools[f"{u.site}.A"].shape[1]) for u in plan.uses if isinstance(u.bind, SecondHead))
    return Stages(config, *next(found, ("", 0)), plan.seed)


def _loss(said: Mapping[str, Said]) -> Tensor:
    """The mean over tokens of what each told."""
    return torch.stack([mean(s.logits[:, 0], s.real) for s in said.values()]).sum()


def _routing(config: PEMA) -> RouterLoss | None:
    return _loss if config.form == "whole" else None


def _compact(config: PEMA, pools: Mapping[str, Tensor]) -> tuple[PEMA, dict[str, Tensor]]:
    """What answers: A and B."""
    return replace(config, form="stored"), {n: p for n, p in pools.items() if not n.endswith((".R", ".kappa"))}


@method(
    "pema",
    PEMA,
    paper="PEMA: An Offsite-Tunable Plug-in External Memory Adaptation for Language Models, arXiv 2311.08590",
    formula="2 r d, and r d more while it trains",
    kinds=("norm", "linear"),
    named=(),
    at="scores",
    lr=1e-4,
    fresh="its distribution is the even one until it has been trained, and has most of the weight",
    compact=_compact,
    schedule=_schedule,
    routing=_routing,
)
def plan(sites: Sequence[Site], config: PEMA) -> Plan:
    """P = (1 - l) P_base + l softmax(head(norm(h(f)))), h(f) = s B A f, s = alpha / r, f the last state before the
    final norm, l the share. A uniform, B and R zero at the start.

    Trained in two stages: A and R by |R s A f - f|^2 (the mean over d); then a new A and B by kappa of the same and
    1 - kappa of the cross entropy of the second distribution alone, R frozen. A file holds A and B.
    Shapes: A (r, d), B and R (d, r). Linear in: nothing. Cost: no gradient goes through the base's blocks; a second
    product with the head a token. It cannot be merged.
    Source: arXiv 2311.08590; github.com/agwaBom/PEMA @04fb817, train_rct_pd.py and `lora_interpolation` in its
    transformers: l falls by l_max / SL with each token of an answer, SL the length of the reference answer, which
    nobody knows who generates. OURS: SL is the option `length`, and an answer begins behind the tokens `invocation`, so
    that a row has one answer however it is run; without them l is constant; `first`, where the code goes by dev rows,
    and one rate, a tenth of the code's, whose steps see 2,048 states. Differs: states are made anew in each step, not
    kept in a store; the reconstruction reads all tokens of a row; the code's division by the least share is left out.
    Where a model does something to its scores behind the head (Gemma 2's caps, Granite's scale) distributions are mixed
    before it.
    Raises: CommonweightError without a head and a norm of its width before it.
    """
    norms = {s.out: s for s in sites if s.kind == "norm"}
    head = next((s for s in reversed(sites) if s.kind == "linear" and s.inp in norms), None)
    if head is None:
        raise CommonweightError(
            "pema: wanted the head that scores the vocabulary and the norm before it, of its width; of "
            f"{counted(len(sites), 'site')} none are these; leave sites out, for a language model with such a head"
        )
    norm = norms[head.inp]
    n, d, r = head.name, head.inp, config.rank
    pools = {f"{n}.A": Pool((r, d), kaiming(d)), f"{n}.B": Pool((d, r), ZEROS)}
    if config.form == "whole":
        pools[f"{n}.R"] = Pool((d, r), ZEROS)
        pools[f"{n}.kappa"] = Pool((1,), Constant(config.kappa), train=False)
    bind = SecondHead(config.alpha / r, config.share, norm.name, config.length or 0, config.invocation, config.dropout)
    reads = {name.rpartition(".")[2]: Read(WHOLE, (name,)) for name in pools}
    return Plan(pools, (Use(norm.name, Lends(), {}), Use(n, bind, reads)))
