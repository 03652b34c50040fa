"""Sparse Universal Transformer: one block run several times, from which tokens halt; optionally a mixture of
experts."""

from __future__ import annotations

from math import log

from ...bind import Expected, Expecting, Experts, Halt, Place
from ...builder import Anatomy, Layout, Unit, tied, walked
from ...core import ZEROS, CommonweightError, Constant, Pool, Use, config, kaiming, option
from .. import maps
from ..experts import mixed
from ..registry import method


@config
class SUT:
    steps: int | None = option(None, "how often the block runs at most; none: as often as the model has layers", ge=1)
    halts: float = option(0.02, "probability with which a token halts at each step to begin with; the paper: 0.5", gt=0)
    done: float = option(0.999, "a token that has halted with this probability is no longer computed", gt=0)
    weight: float = option(0.0, "of the loss of long runs: the mean of sum a_l l + never L", ge=0)
    experts: int = option(1, "experts of the feed-forward network; 1: the network itself", ge=1)
    k: int = option(1, "experts that a token takes", ge=1)
    information: float = option(0.1, "of the loss -(H(e) - H(e | x)) of the experts' router", ge=0)
    init: str = option("average", "which layers the block begins with: stepwise, average, lower or upper")

    def check(self) -> str | None:
        if self.halts >= 1 or self.done >= 1:
            return "halts and done are probabilities below 1"
        if self.init not in maps.INITS:
            return f"init is {self.init!r}; wanted one of {', '.join(maps.INITS)}"
        return f"k={self.k} of {self.experts} experts" if self.k > self.experts else None


@method(
    "sut",
    SUT,
    paper="Sparse Universal Transformer, arXiv 2310.07096",
    shares="one block at every depth, from which tokens halt",
    sizes=lambda depth: [{}, {"experts": 4, "k": 2}],
)
def plan(anatomy: Anatomy, config: SUT) -> Layout:
    """h_(l+1) = block(h_l), keys and values made of sum a_i h_i + never h_l, which is also what comes out in the end.

    A token that has halted is not computed; its keys and values stay those of its last step, so each depth's slots of
    the cache hold all tokens. Parameters: one block, d^2 + 2 d + 1 for halting; with experts E feed-forward networks
    and E d. A block that never halts is the tied model. Source: arXiv 2310.07096, section 2; code shawntan/SUT,
    halting.py. Differs: attention has no experts of its own; a pretrained model's layers begin it, so tokens hardly
    halt at first, where the paper begins with 0.5; the width of the halting network, and its activation, are ours; a
    router's loss is of each step, not of all together; experts begin as the same network, a router drawn N(0, 0.02).
    Raises: CommonweightError for blocks without a norm called input_layernorm, k_proj and v_proj, and for attention
    with windows.
    """
    anatomy.masked("sut")
    depth, d = anatomy.depth, anatomy.width
    steps = config.steps or depth
    if steps > depth:
        raise CommonweightError(f"sut: {steps} steps; the model has {depth} layers")
    modules = {w.module for w in anatomy.blocks[0]}
    listens, speaks = "input_layernorm", ("self_attn.k_proj", "self_attn.v_proj")
    if not {listens, *speaks} <= modules:
        raise CommonweightError(f"sut reads blocks with {listens}, {speaks[0]} and {speaks[1]}; these have none")
    layers = maps.fillers(0, 1, depth, "cycle", config.init)
    layout = tied(anatomy, maps.spaced(0, depth - 1, steps), lambda at, weight: Unit("block", layers))
    if config.experts > 1:
        bind = Experts(config.experts, config.k, 2 * config.experts / config.k, config.information)
        layout = mixed("sut", layout, anatomy, bind, [layers] * config.experts)
    dtype = anatomy.blocks[0][0].dtype
    network = {
        "halt_in": Pool((d, d), kaiming(d), dtype=dtype), "halt_out": Pool((2, d), ZEROS, dtype=dtype),
        "halt_bias": Pool((1,), Constant(log(config.halts / (1 - config.halts))), dtype=dtype),
    }  # fmt: skip

    def bind_of(where: Place) -> Halt:
        return Halt(where, done=config.done, weight=config.weight)

    layout = walked(layout, steps, bind_of, lambda loop: network if loop else {}, ends=0, common=True)
    uses = [Use(f"{at}.{listens}", Expecting(), {}) for at in range(steps)]
    uses += [Use(f"{at}.{name}", Expected(), {}) for at in range(steps) for name in speaks]
    return layout.plus({}, uses)
