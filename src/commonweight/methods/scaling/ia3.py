"""(IA)3: learned factors on keys, values and the inner activations of the feed-forward layer."""

from __future__ import annotations

from collections.abc import Sequence

from ...address import WHOLE
from ...bind import ScaleInput, ScaleOutput
from ...core import ONES, Plan, Pool, Read, Site, Use, config, fits, option
from ..registry import method


@config
class IA3:
    inputs: str | None = option(
        None,
        "glob patterns joined by | of the sites whose input is scaled; none: the second feed-forward layer",
        globs=True,
    )


@method(
    "ia3",
    IA3,
    paper="Few-Shot Parameter-Efficient Fine-Tuning is Better and Cheaper than In-Context Learning, arXiv 2205.05638",
    formula="sum over layers of d_key + d_value + d_ff",
    roles=("key", "value", "qkv", "down"),
    lr=1e-2,
)
def plan(sites: Sequence[Site], config: IA3) -> Plan:
    """k' = l_k * (W_k x), v' = l_v * (W_v x), h' = W_down (l_ff * h); every l starts at one.

    Shapes: l (d_out,) where the output is scaled, bias included, (d_in,) where the input is. Linear in: l.
    Cost: T d_out or T d_in products a site. Source: arXiv 2205.05638, section 3.3.
    Differs: a fused query-key-value projection is scaled as a whole, as in PEFT; other sites that a pattern
    chooses are scaled on the output.
    """
    globs = None if config.inputs is None else [g.strip() for g in config.inputs.split("|")]
    pools, uses = {}, []
    for s in sites:
        inward = s.role == "down" if globs is None else any(fits(s.name, g) for g in globs)
        pools[f"{s.name}.l"] = Pool((s.inp if inward else s.out,), ONES)
        uses.append(Use(s.name, ScaleInput() if inward else ScaleOutput(), {"l": Read(WHOLE, (f"{s.name}.l",))}))
    return Plan(pools, tuple(uses))
