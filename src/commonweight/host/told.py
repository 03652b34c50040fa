"""A route is told the rows of the pass that begins."""

from __future__ import annotations

from torch import nn

from ..core import CommonweightError, counted
from .images import images_by_row
from .route import Route


def unmixed(module: nn.Module, kwargs: dict, rows: int, tokens: int) -> None:
    """Raises: CommonweightError where the model itself takes a batch's rows for each other: transformers' RWKV, as far
    as 5.23, adds the last tokens of all rows, (B, d), to one token of each, (B, 1, d)."""
    config = getattr(module, "config", None)
    if rows > 1 and tokens == 1 and getattr(config, "model_type", "") == "rwkv" and kwargs.get("state") is not None:
        raise CommonweightError(
            f"{type(module).__name__} goes on from a state by one token, and transformers mixes the {rows} rows of the "
            "batch there: each would be answered by the others too; give one row at a time, or use_cache=False"
        )


def told_rows(route: Route | None, module: nn.Module, kwargs: dict, found: tuple[int, int] | None) -> None:
    """A mixed route is told the rows, and tokens of each, of the pass that begins. Raises: CommonweightError where it
    names other readers."""
    if route is not None and found is not None:
        unmixed(module, kwargs, *found)
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
