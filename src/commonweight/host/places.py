"""A site's numbers in a checkpoint, by their places in its weight."""

from __future__ import annotations

import math

from torch import Tensor

from ..core import Site
from .altered import turned
from .disk import Weights
from .sites import Physical


def numbers(there: Weights, at: Physical, site: Site, places: Tensor) -> Tensor:
    """Those at these places of the site's weight (out, inp), row after row.

    Raises: LookupError where no tensor, or more than one, can be the site's.
    """
    from .experts import Stacked  # with all that runs a model, which merging has no use of

    transposed = at.transposed or turned(at.module)
    if isinstance(at, Stacked):
        wanted = (at.count, at.inp, at.out) if at.turned else (at.count, at.out, at.inp)
    else:
        wanted = (site.inp, site.out) if transposed else (site.out, site.inp)
    held = there.find(at.key, wanted)
    shape, o, i = held.shape, places // site.inp + (site.rows[0] if site.rows else 0), places % site.inp
    if isinstance(at, Stacked):  # one expert's matrix after the other, whatever the tensor's dimensions
        e, o = o // at.out, o % at.out
        flat = (e * at.inp + i) * at.out + o if at.turned else (e * at.out + o) * at.inp + i
        fits = math.prod(shape) == math.prod(wanted)
    elif len(shape) == 1 or at.kind == "parameter":
        flat, fits = places, math.prod(shape) == site.out * site.inp
    else:
        flat = i * shape[-1] + o if transposed else o * shape[-1] + i
        fits = len(shape) == 2 and shape[0 if transposed else 1] == site.inp
    if not fits:
        raise LookupError(at.key)
    return held.flat(flat)
