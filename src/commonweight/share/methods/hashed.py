"""STABLE-RPS and ROAST: one small array stands behind every number of the blocks' matrices."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, gcd, prod
from typing import Any, Literal

import torch
from torch.utils.hooks import RemovableHandle

from ...address import Hashed
from ...bind import Replace
from ...builder import Anatomy, Layout, Weight
from ...builder.folded import Folded, Spread
from ...core import CommonweightError, Pool, Read, Use, config, option
from .. import families as fam
from ..registry import method


@config
class Hashing:
    compression: float = option(4.0, "numbers of the matrices for each number of the array", ge=1)
    chunk: int = option(64, "neighbouring numbers that stay together; cut to a divisor of all sizes", ge=1)
    fold: Literal["stable", "roast"] = option(
        "stable", "stable: each part is a permutation of the array (STABLE-RPS); roast: places by the hash alone"
    )
    parts: Literal["all", "attention", "qkv", "ffn"] = option("all", "which matrices")
    seed: int = option(0, "of the hash", ge=0)


@method(
    "hashed",
    Hashing,
    paper="In defense of parameter sharing for model-compression, arXiv 2310.11611; ROAST, arXiv 2207.10702",
    shares="one array between all matrices of all blocks, read through a hash with signs",
    sizes=lambda depth: [{"compression": 2.0}, {"compression": 4.0}, {"compression": 16.0}],
)
def plan(anatomy: Anatomy, config: Hashing) -> Layout:
    """w_i = lambda_t s(i) psi[h(i)]; lambda_t is the spread of the tensor, psi the least-squares fit to the weights.

    Shapes: psi (m,), m = numbers / compression; lambda (1,) a matrix, not trained. Parameters: m. At compression 1 a
    stable fold is an exact permutation, so the model is the original. FLOPs do not fall. Gradients of psi are sums over
    its readers: `scaled_gradients`, for SGD. Source: STABLE-RPS by its reviews and abstract (its text and code were not
    found): parts of m, each hashed on its own, and gradient scaling; ROAST's code apd10/RzLinear. Differs: the hash is
    SplitMix64 (both), ROAST's blocks do not overlap here, and the fit to pretrained weights is ours.
    """
    every = weights(anatomy, config)
    return read(anatomy, config, *room([every], config))


def weights(anatomy: Anatomy, config: Hashing) -> list[tuple[int, Weight]]:
    """(depth, weight) in the order of depth."""
    every = [(at, w) for family in fam.families(anatomy, "hashed", fam.PARTS[config.parts]) for at, w in family]
    return sorted(every, key=lambda one: one[0])


def room(models: Sequence[Sequence[tuple[int, Weight]]], config: Hashing) -> tuple[int, int]:
    """(numbers of the array, chunk) for the weights of one model, or of several."""
    every = [w.shape for weights in models for _, w in weights]
    chunk = gcd(config.chunk, *(shape[-1] for shape in every))
    return chunk * ceil(sum(map(prod, every)) / config.compression / chunk), chunk


def read(anatomy: Anatomy, config: Hashing, m: int, chunk: int, start: int = 0) -> Layout:
    """The layout in which the matrices, end to end from number `start` on, read an array of m numbers."""
    every = weights(anatomy, config)
    names = tuple(f"{at}.{w.name}" for at, w in every)
    reads, balanced = [], config.fold == "stable"
    for _, w in every:
        reads.append(Hashed(start, w.shape, m, chunk, config.seed, balanced))
        start += prod(w.shape)
    dtype = every[0][1].dtype
    pools = {"psi": Pool((m,), Folded(names, tuple(reads)), dtype=dtype)}
    uses = []
    for name, one in zip(names, reads):
        pools[f"{name}.scale"] = Pool((1,), Spread(name), train=False, dtype=dtype)
        uses.append(Use(name, Replace(), {"weight": Read(one, ("psi", f"{name}.scale"))}))
    return fam.instead(anatomy, pools, uses, config.seed)


def scaled_gradients(model: Any) -> RemovableHandle:
    """From now on psi's gradient is divided, number by number, by the sum of lambda^2 over its readers.

    The step of SGD is then the least-squares projection of the step without sharing; with equal lambdas it is the mean
    of the readers' steps. Adam does not feel it. Derived here: the paper's constant was not found. The answer's
    `remove()` ends it. Raises: CommonweightError for a model that `hashed` has not made.
    """
    layers = [m for m in model.modules() if "weight_pool" in m._parameters]
    if not layers:
        raise CommonweightError(f"{type(model).__name__} reads no array by a hash; make it with method hashed")
    array = layers[0].weight_pool
    total = torch.zeros(array.numel(), device=array.device)
    for module in layers:
        address = module.reads["weight"][0]
        at, _ = address.places(array.device)
        square = module.weight_scale.detach().float().square().expand(len(at))
        total.view(-1, address.chunk).index_add_(0, at, square[:, None].expand(-1, address.chunk))
    each = 1 / total.clamp_min(1e-30)  # a number that nobody reads has no gradient
    return array.register_hook(lambda grad: grad * each.to(grad.dtype))
