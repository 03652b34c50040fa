"""For binds that go by whole rows: which tokens of a row are no padding."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import CommonweightError, counted
from .apart import Unfit
from .current import Current
from .sites import Physical
from .states import recomputing


def behind(at: Physical, there: Tensor, y: Tensor) -> Tensor:
    """The same of what the site gives, (rows, ..., d): of pooled tokens (Hiera), none of which is padding, all.

    Raises: CommonweightError where some are padding."""
    many = y[0].numel() // y.shape[-1]
    if many == there.shape[1]:
        return there
    if not bool(there.all()):
        raise CommonweightError(
            f"{at.name}: it gives {counted(many, 'token')} of {there.shape[1]}, some of which are padding, so that it "
            "cannot be known which of them are; make the tenant without this site"
        )
    return there.new_ones(len(y), many)


@torch.compiler.disable(reason="which tokens of a row are padding is looked for beside what is traced")
def there(at: Physical, x: Tensor, current: Current) -> Tensor:
    """Which tokens of what a site is given, (rows, ..., d_in), are no padding: bool (rows, T); all, where the model is
    given no mask. Raises: Unfit where x is not the pass's rows, or not the tokens that its mask is of."""
    run = current.thread.run
    if not (current.replayed or recomputing()) and (run.given is None or run.given[0] is None):
        raise CommonweightError(
            f"{at.name}: what is padding comes of the whole model's input; call the model, not a part of it"
        )
    if len(x) != run.rows:
        raise Unfit(
            f"{at.name}: it is given {tuple(x.shape)} in a pass of {counted(run.rows, 'row')}, so that no row's mean "
            "is known; make the tenant without this site",
            at.name,
        )
    flat = x.flatten(1, -2) if x.dim() > 3 else x
    known, padding = current.there(at.name, flat), current.padding
    texts = padding is not None and padding.tower(at.name) == "language"
    mask = padding.mask(run.masks_of(flat.shape[-2]), at.name) if texts else None
    if x.dim() > 2 and isinstance(mask, Tensor) and (known is None or mask.shape[1] != flat.shape[1]):
        raise Unfit(
            f"{at.name}: it is given {tuple(x.shape)} under a mask of {tuple(mask.shape)}, so that it "
            "cannot be known which tokens are padding; make the tenant without this site",
            at.name,
        )
    if known is not None:
        return known.to(x.device)
    return torch.ones(len(x), x[0].numel() // x.shape[-1], dtype=torch.bool, device=x.device)
