"""The weights of one kind at all depths, which matrix methods look at together."""

from __future__ import annotations

from collections.abc import Iterable

from ..address import WHOLE
from ..builder import Anatomy, Layout, Unit, Weight, tied
from ..core import CommonweightError, Plan, Pool, Read, Use

ATTENTION = ("query", "key", "value", "qkv", "attn_out")
FFN = ("gate", "up", "down")
PARTS: dict[str, tuple[str, ...]] = {
    "qkv": ("query", "key", "value", "qkv"), "attention": ATTENTION, "ffn": FFN, "all": (*ATTENTION, *FFN),
}  # fmt: skip

Family = list[tuple[int, Weight]]


def families(anatomy: Anatomy, method: str, roles: Iterable[str], depths: Iterable[int] | None = None) -> list[Family]:
    """For each linear weight of these roles, the (depth, weight) of all depths that have it, of one shape.

    Raises: CommonweightError where no weight has one of the roles."""
    roles, found = set(roles), {}
    for at in range(anatomy.depth) if depths is None else depths:
        for w in anatomy.blocks[at]:
            if w.kind == "linear" and w.role in roles:
                found.setdefault((w.name, w.shape, w.dtype), []).append((at, w))
    if not found:
        raise CommonweightError(f"{method}: no linear layer of the blocks is one of {', '.join(sorted(roles))}")
    return list(found.values())


def name_of(family: Family) -> str:
    """Of the pools of a family."""
    return family[0][1].name


def stored(family: Family) -> tuple[str, ...]:
    """The names of its weights in the original."""
    return tuple(f"{at}.{w.name}" for at, w in family)


def instead(anatomy: Anatomy, pools: dict[str, Pool], uses: Iterable[Use], seed: int = 0) -> Layout:
    """The model as it is, but for the weights that `uses` replace."""
    given = list(uses)
    taken = {u.site for u in given}
    plain = tied(anatomy, range(anatomy.depth), lambda at, w: Unit(f"depth{at}", (at,)), seed)
    kept = [u for u in plain.plan.uses if u.site not in taken]
    read = {n for u in kept for r in u.reads.values() for n in r.pools}
    own = {n: p for n, p in plain.plan.pools.items() if n in read}
    return Layout(plain.like, Plan({**own, **pools}, (*kept, *given), seed))


def whole(**slots: str) -> dict[str, Read]:
    """Slots that read a pool each, as it is."""
    return {slot: Read(WHOLE, (pool,)) for slot, pool in slots.items()}
