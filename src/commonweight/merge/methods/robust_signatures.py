"""Robust weight signatures: robustness as a patch of the shallow layers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor

from ..call.declare import method
from ..maths.parts import combine, deltas
from ..registry import At, Share


@method(
    "robust_signatures",
    paper="Robust Weight Signatures: Gaining Robustness as Easy as Patching Weights?, arXiv 2302.12480",
    equation=(
        "signature_t = theta_robust,t - theta_clean in shallow layers; theta = theta_target + sum_t w_t signature_t"
    ),
    models=(2, None),
)
def robust_signatures(
    tensors: Sequence[Tensor], base: Tensor, *, weights: Sequence[float], at: At, shallow: Share = 0.5
) -> Tensor:
    """models: the model to patch, then the robust models; base: the clean model that the robust ones belong to.

    shallow: the share of blocks, from the first, that take signatures (the authors' script: 7 of VGG-16's 13
    convolutions, its `keep_num`); tensors outside of blocks always do: leave a head out, or give it a rule. The first
    weight scales the target's own distance from the clean model (1: as it is); a negative weight takes robustness away.
    Differs: the whole difference of a block is its signature; the authors clear it of what lies along the clean model's
    own change since its initialisation, which is not given here, and quantise it.
    """
    tau = deltas(tensors, base)
    if at.depth and at.depth[0] >= math.ceil(shallow * at.depth[1]):
        return base + weights[0] * tau[0]
    return base + combine(tau, weights)
