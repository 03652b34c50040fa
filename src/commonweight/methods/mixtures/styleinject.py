"""StyleInject: several A, of which a row takes a mixture by what its own features say, and one B."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional as F

from ...address import WHOLE
from ...bind.mixture import GATED, tell
from ...bind.one_expert import row_mean
from ...core import ZEROS, Base, Plan, Pool, Read, Site, Use, config, kaiming, option, serial
from ..registry import method


@config
class StyleInject:
    rank: int = option(8, "rank of each A and of the one B; ours", ge=1)
    styles: int = option(4, "matrices A at each site; ours", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)
    dropout: float = option(0.0, "dropout on the input of A, in training", ge=0, le=0.95)


@serial
@dataclass(frozen=True)
class Styled:
    """y' = y + scale B (sum_i s_i A_i) x, with one s for all tokens of a row.

    s = softmax(router m + bias), m the mean of x over the row's tokens that are no padding.
    Shapes: A (n r, d_in), B (d_out, r), router (n, d_in), bias (n,). Linear in: A and B, each alone. No form of a
    weight: it would be another one for each row. base.there: which tokens are no padding, bool (rows, T).
    Cost: T r (n d_in + d_out) products. Raises: CommonweightError where nobody says which tokens are padding.
    """

    scale: float
    dropout: float = 0.0
    tokenwise: ClassVar[bool] = False
    whole: ClassVar[bool] = True
    precise: ClassVar[bool] = True  # shares are worked out in float32
    unmerged: ClassVar[str] = GATED.replace("token", "row")

    def output(self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor, router: Tensor, bias: Tensor) -> Tensor:
        rows = x.reshape(len(x), -1, x.shape[-1])
        n = len(rows)
        slots = (t.expand(n, *t.shape) for t in (A, B, router, bias))
        return self.grouped(rows, y.reshape(n, -1, y.shape[-1]), base, *slots).reshape(y.shape)

    def grouped(self, x: Tensor, y: Tensor, base: Base, A: Tensor, B: Tensor, router: Tensor, bias: Tensor) -> Tensor:
        """`output` of n readers of a row each: x (n, T, d_in), A (n, styles r, d_in), ..."""
        z = (router @ row_mean(x, base)[..., None])[..., 0] + bias
        tell(base, z)
        one = (z.softmax(-1)[..., None, None] * A.unflatten(1, (z.shape[1], -1))).sum(1)  # (n, r, d_in)
        low = F.dropout(x, self.dropout) if self.dropout and base.training else x
        return y + low @ one.to(x.dtype).mT @ (self.scale * B).to(x.dtype).mT


@method(
    "styleinject",
    StyleInject,
    paper="StyleInject: Parameter Efficient Tuning of Text-to-Image Diffusion Models, arXiv 2401.13942",
    formula="sum over sites of r (n d_in + d_out) + n (d_in + 1)",
    kinds=("linear",),
    named=(),
    whole=True,
    size=("rank", "styles"),
)
def plan(sites: Sequence[Site], config: StyleInject) -> Plan:
    """h = W x + (alpha / r) B (sum_i s_i A_i) x; s of a row: softmax of a linear map of the mean of x over the row's
    tokens, padding aside. A uniform, router and B zero at the start, so that all styles have equal shares.

    Shapes: A (n r, d_in), B (d_out, r), router (n, d_in), bias (n,). Linear in: A and B, each alone. Of encoders alone,
    of texts and of images: a row's mean would tell a token of a decoder what comes after it, and differ with a cache.
    Source: the abstract of arXiv 2401.13942 and a review that has this formula; the text could not be read, and there
    is no code. Left out: its second part, of which the abstract says that it adjusts the variance of the features by
    the input signal, and no source that could be read says how (by whose variance, before or behind B, trained or not);
    convolutions, whose router reads a sum over the feature map. Ours, since they were not found:
    the mean as the row's features, a router of one layer and its start, rank, styles, scale and rate.
    Raises: CommonweightError in causal blocks.
    """
    alpha = 2.0 * config.rank if config.alpha is None else config.alpha
    bind, n, pools, uses = Styled(alpha / config.rank, config.dropout), config.styles, {}, []
    for s in sites:
        mine = {
            "A": Pool((n * config.rank, s.inp), kaiming(s.inp)),
            "B": Pool((s.out, config.rank), ZEROS),
            "router": Pool((n, s.inp), ZEROS),
            "bias": Pool((n,), ZEROS),
        }
        pools |= {f"{s.name}.{k}": p for k, p in mine.items()}
        uses.append(Use(s.name, bind, {k: Read(WHOLE, (f"{s.name}.{k}",)) for k in mine}))
    return Plan(pools, tuple(uses))
