"""Mixture-of-Supernets: each architecture has a feed-forward network of its own, mixed of a few shared ones."""

from __future__ import annotations

from typing import Literal

from ...address import Routed
from ...bind import Replace
from ...builder import Anatomy, Layout
from ...core import CommonweightError, Pool, Read, Use, config, option
from .. import generated as net
from ..families import FFN, families, instead
from ..registry import method


@config
class Supernet:
    experts: int = option(2, "weights m that every weight is mixed of", ge=1)
    widths: tuple[float, ...] | None = option(
        None, "the architecture: for each depth the share of the feed-forward width that is in use; none: all of it"
    )
    routing: Literal["layer", "neuron"] = option(
        "layer", "layer: the same mixture for all of a layer; neuron: each neuron has its own"
    )
    hidden: int = option(64, "width of the router's hidden layer", ge=1)
    noise: float = option(0.01, "by which the experts differ at the start, as a share of the weight's size", ge=0)
    seed: int = option(0, "of the routers' and experts' first numbers", ge=0)


@method(
    "supernet",
    Supernet,
    paper="Mixture-of-Supernets, arXiv 2306.04845",
    shares="a few feed-forward networks, of which every architecture takes a mixture, in every width",
    sizes=lambda depth: [{"experts": 2}],
)
def plan(anatomy: Anatomy, config: Supernet) -> Layout:
    """W(a) = slice(sum_i softmax(router(a))_i E_i), b alike; a: the share of the width in use at each depth.

    Shapes: E (m, d, h) for each matrix of a feed-forward network; a (L,); router L -> hidden -> m for each layer, the
    same for its matrices, or hidden -> n m for each matrix. Parameters: m times the feed-forward networks, and the
    routers. `share.choose(small, code=...)` takes another architecture, `share.settle` folds the mixture into plain
    weights of the whole width, in which what is out of use is zero. Cost: m products for each number at each pass.
    Source: arXiv 2306.04845, section 3; code UBC-NLP/MoS (`archrouting_jack_2L`, `neuronrouting_jack_2L`). Differs:
    widths of feed-forward networks alone are elastic, not of embeddings, heads and depth; experts begin with the
    pretrained weight plus noise; what is out of use is multiplied by zero, not cut off, so it saves no time before the
    model is settled.
    """
    shares = config.widths or (1.0,) * anatomy.depth
    if len(shares) != anatomy.depth or not all(0 < s <= 1 for s in shares):
        raise CommonweightError(
            f"supernet: widths has {len(shares)} shares, from {min(shares)} to {max(shares)}; wanted one in (0, 1] for "
            f"each of {anatomy.depth} depths"
        )
    dtype, m = anatomy.blocks[0][0].dtype, config.experts
    pools: dict[str, Pool] = {"arch.code": net.code(shares, dtype)}
    routers: dict[str, dict[str, Pool]] = {}
    uses = []
    for family in families(anatomy, "supernet", FFN):
        for at, w in family:
            biases = [b for b in anatomy.blocks[at] if b.kind == "bias" and b.module == w.module]
            wide = 1 if w.role == "down" else 0  # the dimension of W (out, in) that is the network's width
            name = f"router.{at}" + (f".{w.module}" if config.routing == "neuron" else "")
            out = m * (w.out if config.routing == "neuron" else 1)
            routers[name] = net.layers(name, (anatomy.depth, config.hidden, out), dtype)
            for one in (w, *biases):
                site, turned = f"{at}.{one.name}", one.kind == "linear" and one.transposed
                axis = wide if len(one.shape) == 2 else (0 if wide == 0 else -1)
                axis = 1 - axis if turned else axis
                neurons = 1 if turned else 0
                how = Routed(at, axis, config.routing == "neuron", neurons)
                pools[f"{site}.experts"] = Pool((m, *one.shape), net.Bank(site, noise=config.noise), dtype=one.dtype)
                read = Read(how, (f"{site}.experts", "arch.code", *routers[name]))
                uses.append(Use(site, Replace(), {"weight": read}))
    for made in routers.values():
        pools |= made
    return instead(anatomy, pools, uses, config.seed)
