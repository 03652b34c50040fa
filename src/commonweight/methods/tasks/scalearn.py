"""ScaLearn: a tenant learns only how much of each source tenant's adapter output it adds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch

from ...address import WHOLE, Scaled, Stack
from ...bind import Weighed
from ...core import ZEROS, Around, CommonweightError, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..adapters.bottleneck import Bottleneck, placed
from ..registry import method


@config
class ScaLearn:
    sources: int = option(4, "source adapters S; random ones unless `sources` has put trained ones there", ge=1)
    scaling: Literal["vector", "scalar"] = option("vector", "omega of a source: a number per feature, or one: Uniform")
    layers: Literal["own", "shared"] = option("own", "omega of each layer's own, or one for all of them: ++")
    start: float = option(2.0, "what the omegas of all sources sum to at the start", gt=0)
    dropout: float | None = option(
        None, "dropout of each omega, in training; none: the paper's 0.3, and 0 for one scalar for all", ge=0, le=0.95
    )
    size: int | None = option(None, "width r of the sources' bottleneck; none: d_out / reduction, at least 1", ge=1)
    reduction: int = option(16, "how many times narrower than the layer's output, when size is none", ge=1)
    act: Literal["gelu", "relu"] = option("gelu", "the activation of the source adapters")
    placement: Literal["houlsby", "pfeiffer"] = option("houlsby", "where the source adapters are: see bottleneck")


@method(
    "scalearn",
    ScaLearn,
    paper="ScaLearn: Simple and Highly Parameter-Efficient Task Transfer by Learning to Scale, arXiv 2310.01217",
    formula="S d_out per layer; Uniform: S per layer; ++: S d_out; Uniform++: S",
    roles=("attn_out", "down"),
    depthwise=False,
    lr=6e-3,
    common="the frozen source adapters; its own: the omegas",
    fresh="it starts as the sources' mean, times start",
    size=("sources",),
)
def plan(sites: Sequence[Site], config: ScaLearn) -> Plan:
    """y' = y + sum_s omega_s o_s with o_s = W_up,s act(W_down,s y + b_down,s) + b_up,s of frozen source adapters s.

    Shapes: down (S r, d_out), down_bias (S r,), up (S, d_out, r), up_bias (S, d_out), omega (S, d_out) or (S,).
    Linear in: omega; and in up, up_bias. Cost: as one bottleneck adapter of width S r; it cannot be merged.
    Source: arXiv 2310.01217, section 3, and the official code and its scripts: omega starts at start / S with start = 2
    and a normal deviation of 0.001, has no constraint, and is dropped out in training, number by number, one draw a
    layer and batch (0.3; Uniform++: none); the residual y is added once, outside of the sum. Differs: the paper's
    adapters are of the placement "pfeiffer".
    Raises: with layers="shared" and a vector, when widths differ; when "pfeiffer" leaves no site.
    """
    pools: dict[str, Pool] = {}
    uses, n, shared, alike = [], config.sources, config.layers == "shared", config.scaling == "scalar"
    dropout = config.dropout if config.dropout is not None else 0.0 if shared and alike else 0.3
    mine = placed("scalearn", sites, config.placement)
    for s in mine:
        d, r = s.out, config.size or max(1, s.out // config.reduction)
        omega = "scalearn.omega" if shared else f"{s.name}.omega"
        shape = (n,) if alike else (n, d)
        if omega in pools and pools[omega].shape != shape:
            raise CommonweightError(
                f"scalearn: {s.name}: its output has width {d}, {mine[0].name}'s {mine[0].out}; one vector for all "
                "layers wants one width: use scaling='scalar' or layers='own', or choose the sites"
            )
        pools[omega] = Pool(shape, Around(config.start / n, 0.001), lr=len(mine) ** 0.5 if shared else 1.0)
        bank = {
            "down": Pool((n * r, d), kaiming(d), train=False, scope="shared"),
            "down_bias": Pool((n * r,), ZEROS, train=False, scope="shared"),
            "up": Pool((n, d, r), kaiming(r * n), train=False, scope="shared"),
            "up_bias": Pool((n, d), ZEROS, train=False, scope="shared"),
        }
        pools |= {f"{s.name}.{k}": p for k, p in bank.items()}
        weighed = {"up": Stack(), "up_bias": Scaled()}
        reads = {
            k: Read(weighed[k], (f"{s.name}.{k}", omega)) if k in weighed else Read(WHOLE, (f"{s.name}.{k}",))
            for k in bank
        }
        uses.append(Use(s.name, Weighed(config.act, dropout, alike), reads))
    return Plan(pools, tuple(uses))


def sources(host: Any, names: Sequence[str], name: str = "sources") -> Any:
    """The adapters of trained bottleneck tenants as the frozen common `name`, and a first tenant `name` that reads it.

    Other tenants join with ``host.add("target", "scalearn", **options, common=name)``, where options are sources=S and
    what the sources' config says of size, reduction, act and placement; any scaling and layers.
    Raises: CommonweightError when a source is no bottleneck tenant, or of another make than the first.
    """
    olds = [host[n] for n in names]
    if not olds:
        raise CommonweightError("scalearn: no source tenants were named; wanted trained tenants of 'bottleneck'")
    for old in olds:
        if not isinstance(old.config, Bottleneck):
            raise CommonweightError(
                f"scalearn: {old.name} is a tenant of {old.method.name}; wanted one of 'bottleneck'"
            )
        if old.config != olds[0].config or old.sites != olds[0].sites:
            raise CommonweightError(
                f"scalearn: {old.name} has another config or other sites than {olds[0].name}; train the sources alike"
            )
    made = {k: getattr(olds[0].config, k) for k in ("size", "reduction", "act", "placement")}
    used = {s.name for s in olds[0].sites}
    new = host.add(
        name, "scalearn", sites=lambda site, _: site in used, common=name, sources=len(olds), scaling="scalar", **made
    )
    with torch.no_grad():
        for pool in host.common(name).pools:
            given = [o.pools[pool] for o in olds]
            slot = pool.rpartition(".")[2]
            new.pools[pool].copy_(torch.cat(given) if slot.startswith("down") else torch.stack(given))
    host.freeze(name)
    return new
