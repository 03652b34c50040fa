"""What a shared model is made of: which block each depth is like, and which pool each of its weights reads.

A site is a weight of a depth, ``3.self_attn.q_proj.weight``, a module there, or a whole block, ``3``. Every weight has
one use that gives it its value (`Replace`); what is added to it follows. A site that begins with a dot is a module
outside of the blocks, by its name in the model: ``.model.embed_tokens``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from ..address import WHOLE
from ..bind import LowRank, Place, Replace
from ..core import ZEROS, CommonweightError, Init, Plan, Pool, Read, Use, kaiming
from .dissect import Anatomy, Weight
from .inits import Mean, Residual


@dataclass(frozen=True)
class Layout:
    """like: for each depth of the new model, the block of the original whose structure it has: blocks may be repeated,
    dropped, reordered. plan: pools and uses. config: fields of the model's config that change."""

    like: tuple[int, ...]
    plan: Plan
    config: tuple[tuple[str, Any], ...] = ()

    @property
    def nbytes(self) -> int:
        """Of everything that the blocks hold, and modules outside that read a pool, each pool once."""
        return self.plan.nbytes

    def within(self) -> Layout:
        """What the blocks read, without modules outside of them."""
        uses = tuple(u for u in self.plan.uses if not u.site.startswith("."))
        names = {n for u in uses for r in u.reads.values() for n in r.pools}
        return replace(
            self, plan=self.plan._replace(pools={n: p for n, p in self.plan.pools.items() if n in names}, uses=uses)
        )

    def count(self) -> int:
        return sum(p.numel for p in self.plan.pools.values())

    def settled(self) -> Layout:
        """As it is after training: what an address with `passing` puts together is one plain pool."""
        pools, uses = dict(self.plan.pools), []
        for use in self.plan.uses:
            if any(getattr(r.address, "passing", False) for r in use.reads.values()):
                (read,) = use.reads.values()
                pools[use.site] = replace(self.plan.pools[read.pools[0]], train=True)
                use = use._replace(reads={"weight": Read(WHOLE, (use.site,))})
            uses.append(use)
        left = {n for u in uses for r in u.reads.values() for n in r.pools}
        return replace(
            self, plan=self.plan._replace(pools={n: p for n, p in pools.items() if n in left}, uses=tuple(uses))
        )

    def digest(self) -> str:
        return self.plan.digest()

    def to_json(self) -> str:
        return json.dumps({"like": self.like, "plan": json.loads(self.plan.to_json())})

    def plus(self, pools: Mapping[str, Pool], uses: Sequence[Use]) -> Layout:
        """With more pools and uses."""
        return replace(self, plan=self.plan + Plan(pools, tuple(uses)))


class Unit(NamedTuple):
    """A pool that several depths read. name: what tells it from others of the same weight. layers: the blocks of the
    original whose mean it begins with."""

    name: str
    layers: tuple[int, ...]


def tied(anatomy: Anatomy, like: Sequence[int], unit: Callable[[int, Weight], Unit | None], seed: int = 0) -> Layout:
    """The layout in which each weight of each depth reads the unit that is named for it; None: its own, which begins as
    that of the block it is like. Of a unit's layers those count that have the weight.

    Raises: CommonweightError where blocks are of different kinds: no layer of a unit has a weight, or in its shape.
    """
    shapes = [{w.name: w.shape for w in block} for block in anatomy.blocks]
    pools: dict[str, Pool] = {}
    uses = []
    for depth, layer in enumerate(like):
        for w in anatomy.blocks[layer]:
            found = unit(depth, w) or Unit(f"depth{depth}", (layer,))
            pool = f"{found.name}.{w.name}"
            layers = [i for i in found.layers if w.name in shapes[i]]
            known = {*(shapes[i][w.name] for i in layers), *([pools[pool].shape] if pool in pools else ())}
            if not layers or known != {w.shape}:
                raise CommonweightError(
                    f"{w.name} of block {layer} has no like of shape {w.shape} in blocks {list(found.layers)}, with "
                    "which it would be shared: this model's blocks are of different kinds"
                )
            init = Mean(tuple(f"{i}.{w.name}" for i in layers))
            pools.setdefault(pool, Pool(w.shape, init, dtype=w.dtype))
            uses.append(Use(f"{depth}.{w.name}", Replace(), {"weight": Read(WHOLE, (pool,))}))
    return Layout(tuple(like), Plan(pools, tuple(uses), seed))


def relaxed(
    layout: Layout, anatomy: Anatomy, rank: int, init: str = "svd", takes: Callable[[int, Weight], bool] | None = None
) -> Layout:
    """With an update B A, of rank `rank` or as much as a matrix has, of its own for each linear layer at each depth.

    init: "svd", what the weight of the block that the depth is like differs from what the depth reads; "zero", as
    LoRA's. takes: which weights; None: every linear layer whose pool several depths read.
    """
    reads = {u.site: u.reads["weight"].pools[0] for u in layout.plan.uses if isinstance(u.bind, Replace)}
    readers = layout.plan.readers()
    pools: dict[str, Pool] = {}
    uses = []
    for depth, layer in enumerate(layout.like):
        for w in anatomy.blocks[layer]:
            site = f"{depth}.{w.name}"
            if w.kind != "linear" or not (takes(depth, w) if takes else readers[reads[site]] > 1):
                continue
            r, start = min(rank, *w.shape), layout.plan.pools[reads[site]].init
            for part, shape in (("A", (r, w.inp)), ("B", (w.out, r))):
                first: Init = kaiming(w.inp) if part == "A" else ZEROS
                if init == "svd" and isinstance(start, Mean):
                    first = Residual(f"{layer}.{w.name}", start.of, part, w.transposed)
                pools[f"{site}.{part}"] = Pool(shape, first, dtype=w.dtype)
            uses.append(Use(site, LowRank(1.0), {p: Read(WHOLE, (f"{site}.{p}",)) for p in "AB"}))
    return layout.plus(pools, uses)


def walked(
    layout: Layout,
    loops: int,
    bind: Callable[[Place], Any],
    reads: Callable[[int], Mapping[str, Pool]],
    ends: int = 1,
    common: bool = False,
) -> Layout:
    """With the blocks between the ends as `loops` loops that each run for some of the tokens.

    bind: of where a block stands. reads: {slot: pool} of a loop's first
    block, which chooses; the others read nothing. common: the pools are those of all loops."""
    pools: dict[str, Pool] = {}
    uses = []
    inner = range(ends, len(layout.like) - ends)
    for n, depth in enumerate(inner):
        loop, at = divmod(n, len(inner) // loops)
        slots = reads(loop) if at == 0 else {}
        names = {slot: slot if common else f"{slot}.{loop}" for slot in slots}
        pools |= {names[slot]: pool for slot, pool in slots.items()}
        where = Place(loop, loops, at, len(inner) // loops, len(layout.like) + loop, ends)
        uses.append(Use(str(depth), bind(where), {s: Read(WHOLE, (names[s],)) for s in slots}))
    return layout.plus(pools, uses)
