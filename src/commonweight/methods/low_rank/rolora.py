"""RoLoRA: LoRA trained in the coordinates of a base that Hadamard matrices have turned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from ...address import WHOLE, Unrotated
from ...bind import LowRank
from ...core import ZEROS, Plan, Pool, Read, Rng, Site, Source, Use, config, kaiming, option, serial
from ..registry import method


@config
class RoLoRA:
    rank: int = option(16, "rank r of the update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: rank, a scale of 1", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)


@serial
@dataclass(frozen=True)
class Signs:
    """-1 or 1, each as likely."""

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return 2 * rng.integers(shape, 2) - 1


@method(
    "rolora",
    RoLoRA,
    paper="RoLoRA: Fine-tuning Rotated Outlier-free LLMs for Effective Weight-Activation Quantization, "
    "arXiv 2407.08044",
    formula="sum over sites of r (d_in + d_out)",
    kinds=("linear",),
    roles=("query", "value"),
    lr=1e-3,
)
def plan(sites: Sequence[Site], config: RoLoRA) -> Plan:
    """h = W x + s B A Q^T x, Q = diag(signs) H a random Hadamard rotation of the stream for all layers; B zero at the
    start. Where the layer writes into the stream (attention's and the feed-forward part's last) B is Q B; what the
    latter reads is turned by H alone.

    Shapes: A (r, d_in), B (d_out, r). Linear in: A and B, each alone. Cost: as LoRA, and log2(d) sums for each number
    of A once a step. Source: arXiv 2407.08044; github.com/HuangOwen/RoLoRA @0118cb2 (rotation_utils.py). The functions
    are those of `lora`; only the coordinates differ in which an optimiser moves. Differs: the base is not turned
    itself, which would change it for all tenants, and quantising weights and activations afterwards, the paper's end,
    is not done here: merge (`Host.merged`), then turn and quantise with the tool that serves the model. No centring of
    the embeddings, which that code does to models that do not allow it. Widths that are no power of two: H in blocks.
    """
    alpha = float(config.rank) if config.alpha is None else config.alpha
    bind, uses = LowRank(alpha / config.rank, config.dropout), []
    pools: dict[str, Pool] = {}

    def signs(width: int) -> str:
        pools[f"rolora.{width}"] = Pool((width,), Signs(), train=False, save=False)
        return f"rolora.{width}"

    for s in sites:
        a, b = f"{s.name}.A", f"{s.name}.B"
        pools[a], pools[b] = Pool((config.rank, s.inp), kaiming(s.inp)), Pool((s.out, config.rank), ZEROS)
        if s.role in ("attn_out", "down"):
            A = Read(Unrotated(), (a,)) if s.role == "down" else Read(WHOLE, (a,))
            B = Read(Unrotated(columns=True), (b, signs(s.out)))
        else:
            A, B = Read(Unrotated(), (a, signs(s.inp))), Read(WHOLE, (b,))
        uses.append(Use(s.name, bind, {"A": A, "B": B}))
    return Plan(pools, tuple(uses))
