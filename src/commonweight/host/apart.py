"""A mixed batch run reader by reader: slower, and right for every model that has rows.

Some models feed a layer something that has no rows: a table of relative positions (DeBERTa, Swin v2, conformers), or
tokens of all rows in another order (experts, windows). What a tenant makes of it belongs to no row, so the whole model
runs once per reader, on that reader's rows.
"""

from __future__ import annotations

from collections.abc import Callable, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from ..core import CommonweightError


class Unfit(CommonweightError):
    """A site was given something in which the rows of the batch cannot be found. sites: which; none where no tenant
    could be there otherwise."""

    def __init__(self, message: str, *sites: str):
        super().__init__(message)
        self.sites = sites


def by_reader(
    run: Callable[..., Any],
    groups: Sequence[tuple[Any, list[int]]],
    args: tuple,
    kwargs: dict,
    rows: int,
    images: Callable[[Tensor], dict] | None = None,
) -> Any:
    """What `run(reader, *args, **kwargs)` gives on each group's rows, put together in the order of the batch.

    groups: (reader, its rows). images: what some rows have in place of a list of all images. Every tensor of two or
    more dimensions whose first has `rows` entries is cut; of one dimension, where it is as long as the batch and as
    nothing else. Cost: one pass a reader.
    Raises: Unfit where a call cannot be cut: it brings a cache, or labels (a mean over rows is not a mean of means).
    """
    for name, value in kwargs.items():
        if is_cache(name, value):
            raise Unfit(f"{name} holds all rows at once")
    positions = kwargs.get("position_ids")
    if isinstance(positions, Tensor) and positions.dim() > 2:
        raise Unfit(f"position_ids of shape {tuple(positions.shape)} do not begin with the rows")
    if any(kwargs.get(k) is not None for k in ("labels", "start_positions", "end_positions")):
        raise Unfit("labels were given, and the loss is one number over all rows; leave them out and use the logits")
    places = [torch.tensor(p) for _, p in groups]
    parts = []
    for (reader, _), where in zip(groups, places):
        shown = {} if images is None else images(where)
        mine = cut((args, {k: v for k, v in kwargs.items() if k not in shown}), where, rows)
        mine = mine[0], {**mine[1], **shown}
        found = crossed(run(reader, *mine[0], **mine[1]), where, rows)
        parts.append(found if images is None else without_images(found))
    return join(evened(parts), torch.cat(places).argsort(), [len(p) for p in places])


def evened(parts: list[Any]) -> list[Any]:
    """What encoders before a decoder gave, states and attention, as long as the longest: readers may have prompts."""
    if not all(isinstance(p, MutableMapping) for p in parts):
        return parts
    for name in [k for k in parts[0] if k.startswith("encoder_")]:
        each = [pytree.tree_flatten(p.get(name)) for p in parts]
        if any(not isinstance(v, Tensor) or v.dim() not in (3, 4) for leaves, _ in each for v in leaves):
            continue
        for at in {-2, -1 if "attentions" in name else -2}:
            most = max((v.shape[at] for leaves, _ in each for v in leaves), default=0)
            each = [([_longer(v, at, most) for v in leaves], tree) for leaves, tree in each]
        for p, (leaves, tree) in zip(parts, each):
            p[name] = pytree.tree_unflatten(leaves, tree)
    return parts


def _longer(v: Tensor, at: int, most: int) -> Tensor:
    more = most - v.shape[at]
    return v if not more else F.pad(v, (0, more) if at == -1 else (0, 0, 0, more))


def without_images(found: Any) -> Any:
    """Without what is said of the images, of which there are not so many as rows."""
    if not isinstance(found, MutableMapping) or not any(k.endswith("_hidden_states") for k in found):
        return found
    return type(found)(**{k: v for k, v in found.items() if k not in ("image_hidden_states", "video_hidden_states")})


def uncached(run: Callable[..., Any]) -> Callable[..., Any]:
    """`run` without the cache among its results, which holds the rows of one reader."""

    def bare(*args: Any, **kwargs: Any) -> Any:
        found = run(*args, **kwargs)
        if isinstance(found, MutableMapping):
            return type(found)(**{k: v for k, v in found.items() if not is_cache(k, v)})
        if type(found) is tuple:
            return tuple(v for v in found if v is None or isinstance(v, Tensor | tuple | list))
        return found

    return bare


def is_cache(name: str, value: Any) -> bool:
    """Whether an argument of a call is a cache of what went before."""
    simple = value is None or isinstance(value, bool | int | float | str | Tensor)
    return not simple and ("past_key_values" in name or "cache" in name or name == "mems")  # mems: XLNet


def cut(given: tuple[tuple, dict], where: Tensor, rows: int) -> tuple[tuple, dict]:
    """Some rows of a call of so many. Raises: Unfit for a tensor of which it cannot be known whether it has rows."""
    texts = [t for t in pytree.tree_leaves(given) if isinstance(t, Tensor) and t.dim() < 4]  # images have no tokens
    lengths = {d for t in texts for d in t.shape[1:2]}

    def part(v: Any) -> Any:
        if not isinstance(v, Tensor) or v.dim() == 0 or v.shape[0] != rows:
            return v
        if v.dim() == 1 and rows in lengths:
            raise Unfit(f"a tensor of {rows} numbers may be one per row or one per token")
        return v[where.to(v.device)]

    return pytree.tree_map(part, given)


def crossed(found: Any, where: Tensor, rows: int) -> Any:
    """What compares each row with all (``logits_per_image`` of CLIP and its like) is known within a reader's rows; NaN
    stands where the other row is another reader's."""
    for name in [k for k in found if k.startswith("logits_per_")] if isinstance(found, MutableMapping) else ():
        v = found[name]
        if isinstance(v, Tensor) and v.shape == (len(where), len(where)):
            wide = v.new_full((len(where), rows), float("nan"))
            found[name] = wide.index_copy(1, where.to(v.device), v)
    return found


def join(parts: list[Any], order: Tensor, rows: list[int]) -> Any:
    """Equal trees of results, one per group, as the one of all rows. order: puts the groups' rows into the batch's.

    A tensor with the group's number of rows first is joined; what is the same in every part is kept.
    Raises: Unfit for results that are neither.
    """
    trees = [pytree.tree_flatten(p) for p in parts]
    if any(t[1] != trees[0][1] for t in trees):
        raise Unfit("its results differ in form from reader to reader")
    leaves = [_leaf(list(found), order, rows) for found in zip(*(t[0] for t in trees))]
    return pytree.tree_unflatten(leaves, trees[0][1])


def _leaf(found: list[Any], order: Tensor, rows: list[int]) -> Any:
    first = found[0]
    if all(isinstance(t, Tensor) and t.dim() and t.shape[0] == n for t, n in zip(found, rows)):
        if len({t.shape[1:] for t in found}) > 1:
            raise Unfit(f"its results differ in shape from reader to reader: {[tuple(t.shape) for t in found]}")
        return torch.cat(found).index_select(0, order.to(first.device))
    each = {t.shape[0] / n if isinstance(t, Tensor) and t.dim() > 1 else 0 for t, n in zip(found, rows)}
    if len(each) == 1 and (k := each.pop()) > 1 and k == int(k):  # so many a row, one row's after another's
        whole = torch.cat([t.unflatten(0, (n, int(k))) for t, n in zip(found, rows)])
        return whole.index_select(0, order.to(first.device)).flatten(0, 1)
    if all(f is first or (not isinstance(f, Tensor) and f == first) for f in found):
        return first
    if all(isinstance(t, Tensor) and t.shape == first.shape and torch.equal(t, first) for t in found):
        return first  # a table that no row changes
    raise Unfit(f"a result of type {type(first).__name__} has no rows to put together")
