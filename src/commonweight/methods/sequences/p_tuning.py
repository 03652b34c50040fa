"""P-tuning: a prompt that a small network makes while it is trained."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ...address import WHOLE
from ...bind import ProjectedTokens, SoftTokens
from ...core import Normal, Plan, Pool, Read, Site, Use, config, kaiming, option
from ..registry import method
from .prompt_tuning import leading

_SLOTS = "E", "W1", "b1", "W2", "b2", "W3", "b3"


@config
class PTuning:
    tokens: int = option(16, "vectors m in front of a row", ge=1)
    hidden: int = option(0, "width h of the network; 0: that of the model", ge=0)
    network: bool = option(True, "whether the network is there; false: what it gave alone")
    leads: bool = option(
        False, "in an encoder the first vector stands where heads read, in a row's first place, as in PEFT"
    )


def compact(config: PTuning, pools: Mapping[str, Tensor]) -> tuple[PTuning, Mapping[str, Tensor]]:
    """Without the network: the vectors that it gives."""
    if not config.network:
        return config, pools
    sites = [n.removesuffix(".W1") for n in pools if n.endswith(".W1")]
    made = {f"{n}.E": ProjectedTokens().front(**{k: pools[f"{n}.{k}"] for k in _SLOTS}) for n in sites}
    return replace(config, network=False), made


@method(
    "p-tuning",
    PTuning,
    paper="GPT Understands, Too, arXiv 2103.10385",
    formula="2 m d + 3 (d^2 + d) at h = d, of which the file needs m d (compact)",
    kinds=("prompt",),
    named=(),
    lr=1e-3,
    fresh="every token reads the prompt, whatever it holds",
    size=("tokens",),
    compact=compact,
)
def plan(sites: Sequence[Site], config: PTuning) -> Plan:
    """[E'; X] with E' = W3 relu(W2 relu(W1 E + b1) + b2) + b3: m vectors in front of a row's tokens.

    Shapes: E (m, d), W1 (h, d), W2 (h, h), W3 (d, h). Linear in: W3 and b3, each alone. Cost: as prompt-tuning, and the
    network's products, until `compact` leaves E' alone.
    Source: arXiv 2103.10385; PEFT's P_TUNING with its default, the network of three layers. Differs: all vectors stand
    in front of a row, as in PEFT, and not within it; no LSTM before the network; leads as in prompt-tuning.
    """
    m, pools, uses = config.tokens, {}, []
    leads = leading("p-tuning", sites, config.leads)
    for s in sites:
        d, h = s.out, config.hidden or s.out
        pools[f"{s.name}.E"] = Pool((m, d), Normal(1.0))
        if config.network:
            for i, (out, inp) in enumerate(((h, d), (h, h), (d, h)), 1):
                pools[f"{s.name}.W{i}"] = Pool((out, inp), kaiming(inp))
                pools[f"{s.name}.b{i}"] = Pool((out,), kaiming(inp))
        slots = _SLOTS if config.network else _SLOTS[:1]
        reads = {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in slots}
        uses.append(Use(s.name, ProjectedTokens(leads) if config.network else SoftTokens(leads), reads))
    return Plan(pools, tuple(uses))
