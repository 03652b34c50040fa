"""Prompt tuning: trained vectors in front of a row, where tokens would stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from ...address import WHOLE
from ...bind import SoftTokens
from ...core import (
    CommonweightError,
    Init,
    Normal,
    Plan,
    Pool,
    Read,
    Rng,
    Site,
    Source,
    Use,
    config,
    option,
    serial,
)
from ..registry import method


@config
class PromptTuning:
    tokens: int = option(16, "vectors m in front of a row", ge=1)
    start: Literal["words", "first", "normal"] = option(
        "words", "entries of the base's table, drawn or its first m; normal: of deviation 1, as in PEFT"
    )
    leads: bool = option(
        False, "in an encoder the first vector stands where heads read, in a row's first place, as in PEFT"
    )


@serial
@dataclass(frozen=True)
class Words:
    """Entries of a table of tokens: drawn by the seed, or the first."""

    table: str
    first: bool = False

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        w = base.weight(self.table)  # (d, entries)
        at = [i % w.shape[1] for i in range(shape[0])] if self.first else rng.integers((shape[0],), w.shape[1])
        return w[:, at].T.contiguous()


def leading(method: str, sites: Sequence[Site], leads: bool) -> bool:
    """Raises: CommonweightError where the first vector is to lead, and no head reads a row's first place."""
    if leads and (other := next((s.name for s in sites if s.role), None)):
        raise CommonweightError(
            f"{method}: leads is of encoders, whose heads read a row's first place; at {other} a prompt stands in "
            "front of the row as it is: leave it out"
        )
    return leads


def start(site: Site, how: str) -> Init:
    return Normal(1.0) if how == "normal" else Words(site.name.removesuffix(".prompt"), how == "first")


@method(
    "prompt-tuning",
    PromptTuning,
    paper="The Power of Scale for Parameter-Efficient Prompt Tuning, arXiv 2104.08691",
    formula="m d",
    kinds=("prompt",),
    named=(),
    lr=1e-2,
    fresh="every token reads the prompt, whatever it holds",
    size=("tokens",),
)
def plan(sites: Sequence[Site], config: PromptTuning) -> Plan:
    """[E; X]: m vectors of the tenant's own stand in front of a row's tokens, before the first layer.

    Shapes: E (m, d). Linear in: E. Cost: in a causal decoder a pass of m tokens a tenant, and m more keys a layer; in
    an encoder, where a prompt reads its row, m more tokens in each row of the batch, which a decoder behind it reads
    too. It cannot be merged. The tokens behind move on by m.
    Source: arXiv 2104.08691, section 2; start="words" is its "sampled vocabulary", of all entries. With start="first"
    and rows of text it is Compress, then Prompt (arXiv 2305.11186), trained on a compressed base.
    Differs from PEFT's PROMPT_TUNING: position ids that are given stay in force, so that padding on the left changes no
    answer; and an encoder's head reads the row's own first token, PEFT's the first vector (leads).
    Raises: CommonweightError for leads in a causal decoder, or before one.
    """
    leads = leading("prompt-tuning", sites, config.leads)
    pools = {f"{s.name}.E": Pool((config.tokens, s.out), start(s, config.start)) for s in sites}
    return Plan(pools, tuple(Use(s.name, SoftTokens(leads), {"E": Read(WHOLE, (f"{s.name}.E",))}) for s in sites))
