"""A narrow transformer as a cut of a wide one: which rows and columns of its projections are left."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ...core import CommonweightError


def best(importance: Tensor, n: int) -> Tensor:
    """The n rows of the largest sum of absolute values, in order. Shapes: importance (rows, columns): (n,)."""
    sums = importance.double().abs().sum(1)
    return sums.argsort(descending=True, stable=True)[:n].sort().values


def cut(
    name: str, blocks: int, found: Mapping[str, Tensor], asked: str, width: int, inner: int
) -> list[dict[str, Tensor]]:
    """Of each block query, key and value (width, width), attn_out (width, width), up (inner, width) and down (width,
    inner), which are parts of its own.

    A chain: the columns of the table of tokens that matter most are the first states' channels; a projection has the
    columns that the one before it has left, and of its rows those that matter most. Query, key and value have the same
    rows, by the product of their importances. Without a table the columns of the first block's three are asked (ours).
    found: by the names of `shown.KINDS`' "blocks"; asked: "" for what the rows say, "=" for the weights themselves.
    Raises: CommonweightError where a projection has fewer rows than are wanted.
    """

    def weight(i: int, role: str) -> Tensor:
        return found[f"{name}[{i}].{role}="]

    def matters(i: int, role: str) -> Tensor:
        return found[f"{name}[{i}].{role}{asked}"].double().abs()

    three = "query", "key", "value"
    table = found.get(f"{name}[table]{asked}")
    first = torch.cat([matters(0, r) for r in three]).T if table is None else table
    at, out = _most(name, first, width), []
    for i in range(blocks):
        product = torch.stack([matters(i, r)[:, at] for r in three]).prod(0)
        rows = _most(f"{name}[{i}].query", product, width)
        mine = {r: weight(i, r)[rows][:, at] for r in three}
        for role, n in (("attn_out", width), ("up", inner), ("down", width)):
            columns = rows
            rows = _most(f"{name}[{i}].{role}", matters(i, role)[:, columns], n)
            mine[role] = weight(i, role)[rows][:, columns]
        at = rows
        out.append(mine)
    return out


def _most(name: str, importance: Tensor, n: int) -> Tensor:
    if len(importance) < n:
        raise CommonweightError(
            f"{name}: {len(importance)} rows, of which {n} were to be left; raise reduction, lower expansion, or take "
            "start='random'"
        )
    return best(importance, n)
