"""Early exits of a recursive model: behind each loop a classifier says which tokens are done."""

from __future__ import annotations

from math import log
from typing import Literal

from ...bind import Exit, Place
from ...builder import Anatomy, Layout, walked
from ...core import ZEROS, Pool, build, config, option
from ..registry import method
from .recursive import Recursive
from .recursive import plan as recursive


@config
class Exits:
    loops: int = option(3, "loops B, the most that a token runs; after each but the last it may leave", ge=2)
    sure: float = option(0.9, "a token leaves where it is so likely that the head says what it says in the end", gt=0)
    weight: float = option(0.1, "of the head's loss at an exit, beside the last one's", ge=0)
    init: Literal["stepwise", "average", "lower", "upper", "random"] = option(
        "stepwise", "which layers a unit begins with, as relaxed recursion has it"
    )
    relax: int = option(0, "rank of an update of each linear layer at each depth; 0: none", ge=0)

    def check(self) -> str | None:
        return None if self.sure < 1 else f"sure={self.sure}; wanted a probability below 1"


@method(
    "exit",
    Exits,
    paper="Relaxed Recursive Transformers, arXiv 2410.20672",
    shares="whole layers, looped; tokens leave early where a classifier says that they are done",
    sizes=lambda depth: [{"loops": 2}, {"loops": 3}],
)
def plan(anatomy: Anatomy, config: Exits) -> Layout:
    """A token runs loops until sigmoid(w_r x / rms(x) + b_r) > sure; the norm and the head read what it has then.

    A token that left is not computed, and has no keys and values in later loops. Training (`heal`): loss + weight sum_r
    (CE_r + KL of the detached last distribution) + BCE of the classifier, whose target is whether both say the same.
    Where no classifier is sure it is the recursive model. Parameters: those of the recursive model in cycle order, and
    d + 1 for each exit. Source: arXiv 2410.20672, section 3.3: its coefficient 0.1, its KL; CALM, arXiv 2207.07061,
    section 3.2, whose classifier with the target of agreement. Differs: classifiers read normalised states, and in
    training tokens that would leave are hidden from the others, as they are later.
    Raises: CommonweightError for attention with windows, or with a bias by position.
    """
    anatomy.masked("exit")
    layout = recursive(anatomy, build(Recursive, {k: getattr(config, k) for k in ("loops", "init", "relax")}))
    threshold, dtype = log(config.sure / (1 - config.sure)), anatomy.blocks[0][0].dtype

    def reads(loop: int) -> dict[str, Pool]:
        if loop == 0:
            return {}
        return {"router": Pool((1, anatomy.width), ZEROS, dtype=dtype), "bias": Pool((1,), ZEROS, dtype=dtype)}

    def bind(where: Place) -> Exit:
        return Exit(where, threshold=threshold, weight=config.weight)

    return walked(layout, config.loops, bind, reads, ends=0)
