"""Mixture-of-Recursions: units looped over the depth, and each token runs as many loops as a router gives it."""

from __future__ import annotations

from typing import Literal

from ...bind import ExpertChoice, Place, TokenChoice
from ...builder import Anatomy, Layout, walked
from ...core import Normal, Pool, build, config, option
from ..registry import method
from .recursive import Recursive
from .recursive import plan as recursive


@config
class MoR:
    loops: int = option(3, "loops B, the most that a token runs", ge=1)
    choice: Literal["expert", "token"] = option(
        "expert", "expert: each loop takes its share of tokens; token: each token is given its number of loops"
    )
    capacity: tuple[float, ...] = option((), "share of tokens of each loop; empty: 1, (B - 1) / B, .. 1 / B")
    init: Literal["stepwise", "average", "lower", "upper", "random"] = option(
        "stepwise", "which layers a unit begins with, as relaxed recursion has it"
    )
    relax: int = option(0, "rank of an update of each linear layer at each depth; 0: none", ge=0)
    whole: bool = option(
        False, "y = x + g f(x), as the official code has it for training from scratch; else y = x + g (f(x) - x)"
    )
    alpha: float | None = option(None, "factor of the gate; none: 1 is an undecided router's gate; whole: 0.1, token 1")
    weight: float | None = option(None, "of the router's loss; none: 0.001 for expert, 0.1 for token", ge=0)
    seed: int = option(0, "of the routers' first numbers", ge=0)

    def check(self) -> str | None:
        if self.capacity and len(self.capacity) != self.loops:
            return f"capacity has {len(self.capacity)} numbers for {self.loops} loops"
        if any(not 0 < c <= 1 for c in self.capacity):
            return "capacity holds shares of tokens, above 0 and at most 1"
        return "capacity is of choice=expert" if self.capacity and self.choice == "token" else None


@method(
    "mor",
    MoR,
    paper="Mixture-of-Recursions, arXiv 2507.10524",
    shares="layers, looped between the ends; a router decides for each token how many loops it runs",
    sizes=lambda depth: [{"loops": 2}, {"loops": 3}, {"loops": 3, "choice": "token"}],
)
def plan(anatomy: Anatomy, config: MoR) -> Layout:
    """x <- x + g (f_r(x) - x) for the tokens of loop r, which are of those of loop r - 1; the others are not computed.

    expert: g = alpha sigmoid(w_r x); in training the loop takes its capacity of tokens with the highest score, which
    sees later tokens; in eval mode it takes those with w_r x > 0, which does not, so all measures are of that. token:
    the number of loops is the likeliest of softmax(W x) before the first, g = alpha p. Each depth has its own slots in
    the cache, and holds the tokens that it ran alone.
    Parameters: the first and the last layer, K = (L - 2) / B layers, and d for each loop. Source: arXiv 2507.10524; the
    authors' code. Differs: the paper trains from scratch; a gate of f(x) - x, and alpha 2 (expert) or B (token), make
    an undecided router's gate 1, with which a pretrained model is the tied one; `whole` is the official form. A loop of
    capacity 1 takes all tokens. Not built: a separate auxiliary router, z-loss, warm-up of the capacity, the balance
    without a loss, sharing of keys and values.
    Raises: CommonweightError for attention with windows, or with a bias by position.
    """
    anatomy.masked("mor")
    loops, token = config.loops, config.choice == "token"
    options = {"init": config.init, "relax": config.relax, "seed": config.seed}
    layout = recursive(anatomy, build(Recursive, {"loops": loops, "order": "middle_cycle", **options}))
    usual = (1.0 if token else 0.1) if config.whole else (float(loops) if token else 2.0)
    alpha = usual if config.alpha is None else config.alpha
    weight = (0.1 if token else 0.001) if config.weight is None else config.weight
    capacity = config.capacity or tuple(1 - r / loops for r in range(loops))
    dtype = anatomy.blocks[0][0].dtype

    def reads(loop: int) -> dict[str, Pool]:
        if token:
            return {} if loop else {"router": Pool((loops, anatomy.width), Normal(0.02), dtype=dtype)}
        return {"router": Pool((1, anatomy.width), Normal(0.02), dtype=dtype)}

    def bind(where: Place) -> TokenChoice | ExpertChoice:
        if token:
            return TokenChoice(where, alpha=alpha, whole=config.whole, weight=weight)
        return ExpertChoice(where, capacity=capacity[where.loop], alpha=alpha, whole=config.whole, weight=weight)

    return walked(layout, loops, bind, reads)
