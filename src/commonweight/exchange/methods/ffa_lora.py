"""FFA-LoRA: A is random, frozen and the same everywhere; B alone is trained and averaged, which is exact."""

from __future__ import annotations

from typing import Any

from ...core import config, option
from ..averaging import AVERAGING
from ..registry import method


@config
class FFALoRA:
    rank: int = option(16, "rank r of the update", ge=1)
    alpha: float | None = option(None, "numerator of the scale alpha / rank; none: 2 * rank", gt=0)


@method(
    "ffa-lora",
    FFALoRA,
    paper="Improving LoRA in Privacy-preserving Federated Learning, arXiv 2403.12313",
    id=286,
    exact=True,
    **AVERAGING,
)
def adapter(config: FFALoRA) -> tuple[str, dict[str, Any]]:
    """h = W x + (alpha / r) B A x: A (r, d_in) of the run's seed, so that nobody sends it; B (d_out, r) from zero.

    Source: arXiv 2403.12313, section 4. The mean of B A over clients is mean(B) A. Differs: no dropout.
    """
    more = {} if config.alpha is None else {"alpha": config.alpha}
    return "lori", {"rank": config.rank, "sparsity": 0.0, **more}  # LoRI-D is this plan
