"""A pool of prefixes, of which each row is given those that its meaning asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from torch import Tensor

from ...address import WHOLE
from ...bind import PromptPool as Bound
from ...core import CommonweightError, Orthonormal, Plan, Pool, Positive, Read, Site, Use, config, option
from ..choices import more_than
from ..registry import method
from ..said import RouterLoss, Said

STARTS = {"top": Positive(0.01), "weighed": Positive(1.0), "attended": Orthonormal()}


@config
class PromptPool:
    read: Literal["top", "weighed", "attended"] = option(
        "top",
        "top: the prompts of the largest cosines of a row with their keys; weighed: the sum of all, each times its "
        "cosine; attended: so, with a layer's own keys, after the row's query is multiplied by A",
    )
    prompts: int = option(10, "prompts M of a part", ge=1)
    tokens: int = option(5, "keys and values m of a prompt", ge=1)
    top: int = option(5, "prompts that a row takes, at most as many as there are", ge=1)
    parts: int = option(1, "pools of M prompts, one behind the other: a part may be trained while others rest", ge=1)
    query: Literal["base", "embeddings"] = option(
        "base", "what a row is: the mean of what the plain base's last block gives, a pass more; or of its embeddings"
    )
    pull: float = option(
        0.5,
        "weight of 1 - cosine in the loss: of the prompts taken, of weighed of the last part's; none of attended",
        ge=0,
    )

    def check(self) -> str | None:
        if self.read == "top" and self.top > (there := self.prompts * self.parts):
            return more_than("top", self.top, "prompts", there)
        return None


def pulled(config: PromptPool) -> RouterLoss | None:
    """pull times the mean over rows of sum (1 - cosine) over the prompts that a row takes. Every site says the same."""
    if not config.pull or config.read == "attended":
        return None

    def loss(said: Mapping[str, Said]) -> Tensor:
        cosines, real = next(iter(said.values()))
        if config.read == "top":
            mine = cosines.topk(config.top, -1).values
        else:
            mine = cosines[:, -config.prompts :]
        return config.pull * ((1 - mine).sum(-1) * real).sum() / real.sum().clamp(min=1)

    return loss


@method(
    "prompt-pool",
    PromptPool,
    paper="Learning to Prompt for Continual Learning, CVPR 2022, arXiv 2112.08654",
    formula="M (2 m w a + d), a attentions, w the width of their keys; attended: M a (2 m w + 2 d); times the parts",
    kinds=("prefix",),
    named=(),
    roles=("",),
    lr=1e-2,
    fresh="every token reads prompts, whatever they hold",
    size=("tokens", "prompts"),
    routing=pulled,
)
def plan(sites: Sequence[Site], config: PromptPool) -> Plan:
    """softmax(q [P_K; K]^T) [P_V; V] in every attention; P of each row: by cosines c_p(x) = cos(x, K_p) of its query x
    with the prompts' keys, the `top` largest behind one another, or sum_p c_p P_p, or that with cos(x * A_p, K_p).

    x is what the plain base makes of the row, the mean over its tokens of the last block; query=embeddings: of the
    entries of its table of tokens, as MoCL has it, in a decoder of those of the row's prompt (ours). Shapes: P (M, 2,
    m, w), K and A (M, d), d = w. Linear in: P, given the keys. Cost: a pass of the base (of embeddings none), and top m
    or m more keys a layer. Of encoders alone with the base's query, which is of a whole row; it cannot be merged. The
    tokens behind move on, as in prefix tuning. Source: top: L2P, github.com/google-research/l2p, models/prompt.py, in
    the form of prefixes that it has for DualPrompt and CODA-Prompt's code for L2P (models/zoo.py, with keys for each
    layer; here one for all, as L2P's); M, N and m of its first configuration (@8cfb210), the weight of its five data
    sets (0.5; its two of CIFAR-100 have 0.1 and 1); P and K start uniform in [0, 0.01). Its configurations give all
    rows of a batch the prompts that most of them take; here a row is what it is alone. attended: CODA-Prompt,
    github.com/GT-RIPL/CODA-Prompt @605ac87, models/zoo.py; each part starts with orthonormal rows. weighed: MoCL,
    github.com/boschresearch/MoCL-NAACL-2024 @e8d4322; P and K start uniform in [0, 1). Of the papers no full text was
    read. Ours: base's query (theirs: a class token, or MoCL's), no penalty on how often a prompt is taken.
    Raises: CommonweightError with the base's query at an attention that sees no later token.
    """
    pools: dict[str, Pool] = {}
    uses, start = [], STARTS[config.read]
    for s in sites:
        if s.role == "causal" and config.query == "base":
            raise CommonweightError(
                f"prompt-pool reads sites of kind prefix of encoders: at {s.name} no token sees a later one, and "
                "prompts are chosen by a whole row; take query=embeddings, which goes by a row's prompt, or "
                "prefix-tuning"
            )
        home = s.name if config.read == "attended" else "pool"
        mine = {f"P{i}": Pool((config.prompts, 2, config.tokens, s.out), start) for i in range(config.parts)}
        at = {k: f"{s.name}.{k}" for k in mine}
        for kind in ("K", "A") if config.read == "attended" else ("K",):
            for i in range(config.parts):
                mine[f"{kind}{i}"] = Pool((config.prompts, s.out), start)
                at[f"{kind}{i}"] = f"{home}.{kind}{i}"
        pools |= {at[k]: p for k, p in mine.items() if at[k] not in pools}
        if any(pools[at[k]].shape != p.shape for k, p in mine.items()):
            raise CommonweightError(
                f"{s.name}: its keys are {s.out} wide, those before {sites[0].out}; name sites of one width"
            )
        bind = Bound(config.top if config.read == "top" else 0, config.query)
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (n,)) for k, n in at.items()}))
    return Plan(pools, tuple(uses))
