"""A mixture of copies of a module, of which each token takes some."""

from __future__ import annotations

from dataclasses import dataclass

from ..core import serial


@serial
@dataclass(frozen=True)
class Experts:
    """y = sum over the k chosen of p_e f_e(x), p = softmax(router x). Shapes: router (E, d).

    capacity: in training an expert takes int(T capacity k / E) of a batch's T tokens, the first that chose it; others
    get nothing of it, as in the paper, which is of images. Otherwise it takes all: a model that is given one token at
    a time would have room for none. Source: WideNet, arXiv 2107.11817, section 3.2.
    weight: of the loss -(H(e) - H(e | x)), the information that tokens have of experts; SUT, arXiv 2310.07096, eq. (7).
    """

    experts: int
    k: int = 1
    capacity: float = 1.25
    weight: float = 0.0

    @property
    def taken(self) -> tuple[str, float]:
        """(what of the site, the share of tokens that it runs for)."""
        return "experts", self.k / self.experts
