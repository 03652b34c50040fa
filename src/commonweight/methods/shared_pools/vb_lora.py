"""VB-LoRA: every A and B is laid from sub-vectors, each a mixture of a few vectors of one bank for the model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from ...address import Chosen, TopK
from ...bind import LowRank
from ...core import CommonweightError, Normal, Plan, Pool, Read, Rng, Site, Source, Uniform, Use, config, option, serial
from ..choices import more_than
from ..registry import method
from ..widths import divides


@config
class VBLoRA:
    rank: int = option(4, "rank r of every site's update", ge=1)
    num_vectors: int = option(256, "vectors h in the bank", ge=2, le=32768)
    vector_length: int | None = option(
        None, "length b of a vector; must divide every width; none: the largest up to 256 that does", ge=1
    )
    topk: int = option(2, "vectors in a mixture; with one alone the logits would get no gradient", ge=2)
    bound: float = option(0.02, "the bank starts uniform in [-bound, bound)", gt=0)
    logits_std: float = option(0.1, "standard deviation of the first logits", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)
    compact: bool = option(False, "keep only each mixture's chosen vectors and their logits: see `compact`")

    def check(self) -> str | None:
        return more_than("topk", self.topk, "vectors", self.num_vectors)


@serial
@dataclass(frozen=True)
class Draws:
    """k different numbers below `high` for every sub-vector: the choice that a compact tenant starts with."""

    high: int

    def __call__(self, shape: tuple[int, ...], rng: Rng, base: Source) -> Tensor:
        return rng.uniform((*shape[:-1], self.high)).topk(shape[-1], dim=-1).indices


@method(
    "vb-lora",
    VBLoRA,
    paper="VB-LoRA: Extreme Parameter Efficient Fine-Tuning with Vector Banks, arXiv 2405.15179",
    formula="h b + h r sum over sites of (d_in + d_out) / b",
    unfit=divides("vector_length"),
    lr=1e-2,
    common="the bank; its own: the logits",
    fresh="a bank of zeros would give no logit a gradient, so that A, B and B A start small but not zero",
    size=("num_vectors", "rank"),
    compact=lambda config, pools: (replace(config, compact=True), compact(pools, config.topk)),
)
def plan(sites: Sequence[Site], config: VBLoRA) -> Plan:
    """h = W0 x + B A x; every b numbers of A's rows and of B's columns are a top-k softmax mixture of the bank.

    Shapes: bank (h, b); A's logits (r, d_in / b, h) -> A (r, d_in); B's logits (d_out / b, r, h) -> B (d_out, r).
    Linear in: the bank for A, and for B. Source: arXiv 2405.15179, eqs. (2) and (3), sizes of section 4.
    compact=True: index and logits (.., k) instead of all h logits, which is what the paper counts as stored; the
    choice is then fixed. Raises: when b does not divide a width.
    """
    k, h, r = config.topk, config.num_vectors, config.rank
    common = math.gcd(*(width for s in sites for width in (s.inp, s.out)))
    b = config.vector_length or next(d for d in range(256, 0, -1) if common % d == 0)
    # The paper's 1e-3 was found with every site reading the bank, so it is not divided by the readers once more.
    rate = 0.1 * math.sqrt(2 * len(sites))
    pools = {"vb-lora.bank": Pool((h, b), Uniform(config.bound), lr=rate, scope="shared")}
    uses = []
    for s in sites:
        reads = {}
        for slot, width in (("A", s.inp), ("B", s.out)):
            if width % b:
                choose = [d for d in range(min(width, 256), 0, -1) if width % d == 0][:4]
                raise CommonweightError(
                    f"vb-lora: {s.name}: width {width} of {slot} is not a multiple of vector_length={b}; "
                    f"choose a length that divides every width, here {choose}, or exclude the site"
                )
            shape = (r, width // b) if slot == "A" else (width // b, r)
            index, logits = f"{s.name}.{slot}.index", f"{s.name}.{slot}.logits"
            pools[logits] = Pool((*shape, k if config.compact else h), Normal(config.logits_std))
            if config.compact:
                dtype = "uint8" if h <= 256 else "int16"
                pools[index] = Pool((*shape, k), Draws(h), train=False, dtype=dtype)
                reads[slot] = Read(Chosen(slot == "B"), ("vb-lora.bank", index, logits))
            else:
                reads[slot] = Read(TopK(k, slot == "B"), ("vb-lora.bank", logits))
        uses.append(Use(s.name, LowRank(1.0, config.dropout), reads))
    return Plan(pools, tuple(uses))


def compact(pools: Mapping[str, Tensor], topk: int) -> dict[str, Tensor]:
    """The pools of the same update under compact=True: from h logits per sub-vector, the k that count.

    The bytes of the logits fall by about 4 h / (5 k): 100-fold at h = 256, k = 2.
    """
    out = {}
    for name, value in pools.items():
        if name.endswith(".logits"):
            top, index = value.detach().topk(topk, dim=-1)
            out[name] = top
            out[name.removesuffix("logits") + "index"] = index
        else:
            out[name] = value.detach()
    return out
