"""AutoPEFT: adapters of two kinds in some of the layers, of sizes that a search finds."""

from __future__ import annotations

from typing import Any

from ...address import WHOLE
from ...bind import Bottleneck, Parallel
from ...builder import Anatomy, Layout
from ...core import ZEROS, CommonweightError, Pool, Read, Use, config, kaiming, option
from ..families import instead
from ..registry import method

GENES = range(11)  # log2 of how many times narrower than the model an adapter is


@config
class AutoPEFT:
    serial: int = option(4, "the adapter behind the feed-forward network is width / 2**serial wide; 0 wide: none", ge=0)
    parallel: int = option(4, "the adapter beside the feed-forward network is width / 2**parallel wide", ge=0)
    leave_out: tuple[int, ...] = option((), "layers without adapters")
    train_base: bool = option(False, "the model's own blocks train too")


def space(depth: int) -> dict[str, Any]:
    """For `search`: both sizes, and of each layer whether it is left out."""
    return {"serial": GENES, "parallel": GENES, **{f"layer{i}": (0, 1) for i in range(depth)}}


def options(choice: dict[str, Any]) -> dict[str, Any]:
    """What a choice of that space says, as options of this method."""
    out = tuple(int(n.removeprefix("layer")) for n, v in choice.items() if n.startswith("layer") and v)
    return {"serial": choice["serial"], "parallel": choice["parallel"], "leave_out": out}


@method(
    "autopeft",
    AutoPEFT,
    paper="AutoPEFT: Automatic Configuration Search for Parameter-Efficient Fine-Tuning, arXiv 2301.12132",
    shares="nothing: frozen blocks with adapters of searched sizes in searched layers",
    sizes=lambda depth: [{}],
)
def plan(anatomy: Anatomy, config: AutoPEFT) -> Layout:
    """z = f(x); z + S(z) + P(x) in the place of f(x), f the feed-forward network; S, P = up relu(down . + b) + b'.

    Shapes: down (r, d), up (d, r), r = d // 2**gene, the same in all layers that are not left out. Parameters:
    2 d r + r + d for each. Fresh, it is the model itself: up and its bias are zero. `searching.search(space(depth),
    ...)` with `options(choice)` finds sizes and layers. Source: arXiv 2301.12132; code cambridgeltl/autopeft. Differs:
    no prefixes (their third gene); the blocks are frozen here, embeddings and head train; the search is Optuna's with a
    Gaussian process, where theirs is a sparse one (SAAS), fully Bayesian; parameters are those that train, biases too.
    Raises: CommonweightError where no feed-forward network is found, and where nothing is left.
    """
    wrong = [i for i in config.leave_out if not 0 <= i < anatomy.depth]
    if wrong:
        raise CommonweightError(f"autopeft: leave_out names layer {wrong[0]}; the model has {anatomy.depth}")
    whole = instead(anatomy, {}, ())
    pools = dict(whole.plan.pools)
    if not config.train_base:
        pools = {n: p.__class__(p.shape, p.init, train=False, dtype=p.dtype) for n, p in pools.items()}
    uses = list(whole.plan.uses)
    dtype, d, made = anatomy.blocks[0][0].dtype, anatomy.width, 0
    for at in range(anatomy.depth):
        if at in config.leave_out:
            continue
        behind, beside = places(anatomy, at)
        for kind, where, gene in (("serial", behind, config.serial), ("parallel", beside, config.parallel)):
            if not (r := d >> gene):
                continue
            slots = {
                "down": Pool((r, d), kaiming(d), dtype=dtype), "down_bias": Pool((r,), ZEROS, dtype=dtype),
                "up": Pool((d, r), ZEROS, dtype=dtype), "up_bias": Pool((d,), ZEROS, dtype=dtype),
            }  # fmt: skip
            pools |= {f"{at}.{kind}.{slot}": pool for slot, pool in slots.items()}
            reads = {slot: Read(WHOLE, (f"{at}.{kind}.{slot}",)) for slot in slots}
            uses.append(Use(f"{at}.{where}", (Bottleneck if kind == "serial" else Parallel)("relu"), reads))
            made += 1
    if not made:
        raise CommonweightError(f"autopeft: no adapter is left: width {d}, {config}")
    return Layout(whole.like, whole.plan._replace(pools=pools, uses=tuple(uses)))


def places(anatomy: Anatomy, at: int) -> tuple[str, str]:
    """(the module whose output the serial adapter reads, the one whose input the parallel adapter reads)."""
    down = next((w.module for w in anatomy.blocks[at] if w.role == "down" and w.kind == "linear"), None)
    if down is None or "." not in down:
        raise CommonweightError("autopeft: no feed-forward network is found in the blocks")
    home = down.rpartition(".")[0]
    norms = any(w.kind == "norm" and w.module.startswith(f"{home}.") for w in anatomy.blocks[at])
    return (down if norms else home), home  # BERT's output has the residual and the norm inside
