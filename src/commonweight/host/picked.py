"""Which tokens of a pass a head is given, where it is not given all of them."""

from __future__ import annotations

from torch import Tensor

from .current import Pass

_MARK = "_commonweight_places"


def marked(x: Tensor, places: Tensor) -> Tensor:
    """x (B, S, d), which says from now on of which tokens of its rows it is; places: (B, S)."""
    setattr(x, _MARK, places)
    return x


def alike(z: Tensor, x: Tensor, run: Pass) -> Tensor:
    """Of what there is of each token, z (B, T, ...), that of the tokens that x (B, S, d) is of: those it was marked
    with, those that the pass was told to keep, else the last ones of each row. z itself where it has as many."""
    if z.dim() != 3 or x.dim() != 3 or len(z) != len(x):
        return z
    places = getattr(x, _MARK, None)
    if places is not None:
        return z.gather(1, places.to(z.device)[..., None].expand(-1, -1, z.shape[-1]))
    if z.shape[1] <= x.shape[1]:
        return z
    kept = run.kept
    return z[:, kept] if isinstance(kept, Tensor) and kept.numel() == x.shape[1] else z[:, -x.shape[1] :]
