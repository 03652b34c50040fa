"""The table of input tokens, and the output layer, of a narrower width than the model: what methods put there."""

from __future__ import annotations

from ..bind import ThinHead, ThinTable
from ..builder import Anatomy, Layout, Weight
from ..builder.factors import Components
from ..core import CommonweightError, Pool, Use
from . import families as fam


def table(anatomy: Anatomy, method: str) -> Weight:
    """The table of input tokens. Raises: CommonweightError where there is none that could be factorised."""
    found = next((w for w in anatomy.rest if anatomy.table and w.name == f"{anatomy.table}.weight"), None)
    if found is None or len(found.shape) != 2:
        raise CommonweightError(f"{method}: the model has no table of input tokens that could be made narrower")
    return found


def tied(anatomy: Anatomy) -> bool:
    """Whether the output layer has the table of the input."""
    return bool(anatomy.head) and not any(w.name == f"{anatomy.head}.weight" for w in anatomy.rest)


def thin(layout: Layout, anatomy: Anatomy, rank: int, method: str, head: bool = False) -> Layout:
    """With an input table E ~ T M by the SVD of E: T = U S (V, r), M = V^T (r, d).

    head: the output layer is x M'^T T^T with the same table T and a map M' (r, d) of its own, which begins as M, as a
    model whose head has the input's table is; else it is the full E, which is its own from then on.
    Raises: CommonweightError where there is no table, and with head where the two are not one.
    """
    whole = table(anatomy, method)
    r = min(rank, *whole.shape)
    name = f".{whole.name}"
    pools = {
        "table": Pool((whole.shape[0], r), Components(name, "B", 1.0), dtype=whole.dtype),
        "table.map": Pool((r, whole.shape[1]), Components(name, "A"), dtype=whole.dtype),
    }
    uses = [Use(f".{anatomy.table}", ThinTable(), fam.whole(table="table", map="table.map"))]
    if head:
        if not tied(anatomy):
            raise CommonweightError(
                f"{method}: the output layer has no common table with the input; wanted a tied model"
            )
        pools["table.down"] = Pool((r, whole.shape[1]), Components(name, "A"), dtype=whole.dtype)
        uses.append(Use(f".{anatomy.head}", ThinHead(), fam.whole(table="table", down="table.down")))
    out = layout.plus(pools, uses)
    return Layout(out.like, out.plan, (*layout.config, ("tie_word_embeddings", False)))
