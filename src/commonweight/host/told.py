"""A route is told the rows of the pass that begins."""

from __future__ import annotations

from torch import nn

from ..core import CommonweightError, counted
from .images import images_by_row
from .route import Route


def told_rows(route: Route | None, module: nn.Module, kwargs: dict, found: tuple[int, int] | None) -> None:
    """A mixed route is told the rows, and tokens of each, of the pass that begins. Raises: CommonweightError where it
    names other readers."""
    if route is None or route.single is not None or found is None:
        return
    rows = route.begin(*found)
    route.images = images_by_row(module, kwargs, rows)
    shape = (route.length,) if route.shape is None else route.shape
    fits = shape == found if len(shape) == 2 else shape in ((rows,), *([found[1:]] if rows == 1 else []))
    if not fits:
        raise CommonweightError(
            f"the route names {' x '.join(map(str, shape))} readers, the batch has {counted(rows, 'row')}; "
            "give one reader per row (None for the plain base), or a LongTensor with one number per token"
        )
