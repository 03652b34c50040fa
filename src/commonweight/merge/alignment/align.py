"""Permutation alignment: units of one network are put in the order of another's before weights are merged.

Git Re-Basin: Merging Models modulo Permutation Symmetries (arXiv 2209.04836), weight matching (section 3.2,
algorithm 1): coordinate descent over groups of units, each step one linear assignment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from ...core import CommonweightError, Rng, counted, unknown

State = Mapping[str, Tensor]
Permutations = dict[str, Tensor]  # group -> (units,): unit i is taken from unit permutation[i]


class Place(NamedTuple):
    """Where a group's units lie in a tensor: along which axis, from which entry on."""

    tensor: str
    axis: int
    start: int = 0


class Group(NamedTuple):
    """Units that change places together: units * block neighbouring entries at every place (block: a head's width).

    per: so many neighbouring units share one block at each of the `shared` places, as query heads share their keys and
    values; they stay neighbours then: whole neighbourhoods change places, and units within one.
    """

    name: str
    units: int
    places: tuple[Place, ...]
    block: int = 1
    per: int = 1
    shared: tuple[Place, ...] = ()

    @property
    def lies(self) -> tuple[tuple[Place, int], ...]:
        """Every place, with how many units one block stands for there."""
        return (*((p, 1) for p in self.places), *((p, self.per) for p in self.shared))


# Names of the layers that make a feed-forward's inner units, and of those that read them.
PAIRS = (
    (("gate_proj", "up_proj"), "down_proj"), (("w1", "w3"), "w2"), (("wi_0", "wi_1"), "wo"), (("wi",), "wo"),
    (("intermediate.dense",), "output.dense"), (("fc1",), "fc2"), (("lin1",), "lin2"), (("linear1",), "linear2"),
)  # fmt: skip


def chain(layers: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> list[Group]:
    """The hidden units of linear layers that follow one another (with anything elementwise between them)."""
    _there(layers, shapes)
    out = []
    for first, after in pairwise(layers):
        places = [Place(f"{first}.weight", 0), *([Place(f"{first}.bias", 0)] if f"{first}.bias" in shapes else [])]
        out.append(Group(first, shapes[f"{first}.weight"][0], (*places, Place(f"{after}.weight", 1))))
    _fit(out, shapes)
    return out


def feed_forwards(shapes: Mapping[str, tuple[int, ...]]) -> list[Group]:
    """The inner units of every feed-forward block, found by the usual names of its layers (see PAIRS); the residual
    stream and attention stay as they are. Raises: CommonweightError when there is none.
    """
    out = []
    for ups, down in PAIRS:
        for name in sorted(n for n in shapes if re.search(rf"(^|\.){re.escape(down)}\.weight$", n)):
            prefix = name.removesuffix(f"{down}.weight")
            if not all(f"{prefix}{up}.weight" in shapes for up in ups):
                continue
            writes = [f"{prefix}{up}.{part}" for up in ups for part in ("weight", "bias")]
            places = [Place(w, 0) for w in writes if w in shapes]
            out.append(Group(f"{prefix}{ups[0]}", shapes[writes[0]][0], (*places, Place(name, 1))))
    if not out:
        raise CommonweightError("no feed-forward block is called as usual; give chain(), or groups of your own")
    _fit(out, shapes)
    return out


def heads(
    prefix: str,
    count: int,
    shapes: Mapping[str, tuple[int, ...]],
    names: Sequence[str] = ("q_proj", "k_proj", "v_proj", "o_proj"),
) -> Group:
    """The heads of one attention layer, whose query, key, value and output layers are called prefix + names.

    count: query heads. With fewer key and value heads (grouped-query attention) groups of query heads change places
    with their keys and values, and query heads within a group; how many there are the shapes say. Norms over a head's
    own entries and rotary embeddings, the same for every head, stay as they are.
    Raises: CommonweightError for layers that are not there, and for shapes that hold no such heads.
    """
    query, *reads, out = (f"{prefix}{n}" for n in names)
    _there([query, *reads, out], shapes)
    rows, few = shapes[f"{query}.weight"][0], shapes[f"{reads[0]}.weight"][0]
    if count < 1 or not few or rows % count or few % (rows // count) or count % (few // (rows // count)):
        raise CommonweightError(
            f"{prefix}: {count} heads do not fit {counted(rows, 'row')} of {names[0]} and {few} of {names[1]}; "
            "wanted equal "
            "heads, and a whole number of query heads for each key head"
        )
    width = rows // count
    own = [Place(f"{query}.{p}", 0) for p in ("weight", "bias") if f"{query}.{p}" in shapes]
    both = [Place(f"{r}.{p}", 0) for r in reads for p in ("weight", "bias") if f"{r}.{p}" in shapes]
    last = Place(f"{out}.weight", 1)
    if few == rows:
        group = Group(prefix + "heads", count, (*own, *both, last), width)
    else:
        group = Group(prefix + "heads", count, (*own, last), width, rows // few, tuple(both))
    _fit([group], shapes)
    return group


def match(groups: Sequence[Group], a: State, b: State, *, rounds: int = 50, seed: int = 0) -> Permutations:
    """The permutations of b's units that bring its weights nearest to a's: a local optimum, by coordinate descent.

    Each step solves one group's assignment exactly (scipy; where units share blocks, by one assignment within every two
    of them), the others held; groups go in an order drawn by the seed.
    Cost: a round is a product (units, fan) (fan, units) and one assignment, O(units^3), a group.
    Raises: CommonweightError when a group does not fit the tensors, or scipy is missing.
    """
    for state in (a, b):
        _fit(groups, {k: tuple(t.shape) for k, t in state.items()})
    touched = {p.tensor for g in groups for p, _ in g.lies}
    left, right = ({k: s[k].detach().double() for k in touched} for s in (a, b))
    found: Permutations = {g.name: torch.arange(g.units) for g in groups}
    draw = Rng(seed, "alignment")
    for _ in range(rounds):
        moved = False
        for i in draw.permutation(len(groups)).tolist():
            group = groups[i]
            here = permute(groups, found, right)
            gain, both = _gain(left, here, group, group.places), _gain(left, here, group, group.shared, group.per)
            step = _assign(gain, both, group.per)
            before, after = (_total(gain, both, group.per, s) for s in (torch.arange(group.units), step))
            if after > before + 1e-9 * max(gain.abs().max(), both.abs().max()):
                found[group.name] = found[group.name][step]
                moved = True
        if not moved:
            break
    return found


def _gain(a: State, b: State, group: Group, places: Sequence[Place], per: int = 1) -> Tensor:
    """(blocks, blocks): inner products of every block of a with every one of b, over these places."""
    none = torch.zeros(group.units // per, group.units // per, dtype=torch.float64)
    return sum((_units(a, group, p, per) @ _units(b, group, p, per).T for p in places), none)


def _assign(gain: Tensor, both: Tensor, per: int) -> Tensor:
    """The best order of units, of which `per` neighbours go with a block of `both`."""
    if per == 1:
        return assign(gain + both)
    n = len(both)
    cells = gain.view(n, per, n, per).transpose(1, 2)  # (block of a, block of b, unit, unit)
    inside = torch.stack([torch.stack([assign(c) for c in row]) for row in cells])
    whole = assign(both + cells.gather(3, inside[..., None]).sum((2, 3)))
    return (whole[:, None] * per + inside[torch.arange(n), whole]).flatten()


def _total(gain: Tensor, both: Tensor, per: int, order: Tensor) -> Tensor:
    blocks = order[::per] // per
    return gain[torch.arange(len(order)), order].sum() + both[torch.arange(len(blocks)), blocks].sum()


def fits(groups: Sequence[Group], permutations: Mapping[str, Tensor], a: State, b: State) -> dict[str, Tensor]:
    """Group -> (units,) float64: the inner product of each unit of a with that of b in its place, all that writes it
    and all that reads it; what units share counts to equal parts."""
    here = permute(groups, permutations, b)
    out = {}
    for g in groups:
        parts = [((_units(a, g, p, n) * _units(here, g, p, n)).double().sum(1) / n, n) for p, n in g.lies]
        out[g.name] = torch.stack([x.repeat_interleave(n) for x, n in parts]).sum(0)
    return out


def assign(gain: Tensor) -> Tensor:
    """(n,) int64: the column of each row, no column twice, with the largest total gain. gain (n, n)."""
    try:
        from scipy.optimize import linear_sum_assignment
    except ImportError as e:
        raise CommonweightError("alignment needs scipy; install commonweight[search]") from e
    return torch.from_numpy(linear_sum_assignment(gain.numpy(), maximize=True)[1]).long()


def permute(groups: Iterable[Group], permutations: Mapping[str, Tensor], state: State) -> dict[str, Tensor]:
    """The same network with its units in another order: what it computes does not change."""
    out = dict(state)
    for g in groups:
        for p, n in g.lies:
            order = permutations[g.name][::n] // n
            whole = (order[:, None] * g.block + torch.arange(g.block)).flatten()
            t = out[p.tensor]
            index = torch.arange(t.shape[p.axis])
            index[p.start : p.start + len(whole)] = p.start + whole
            out[p.tensor] = t.index_select(p.axis, index.to(t.device))
    return out


def align(groups: Sequence[Group], models: Sequence[State], *, seed: int = 0) -> list[dict[str, Tensor]]:
    """Every model in the order of the first; then any merge method may take them."""
    first, *others = models
    return [dict(first), *(permute(groups, match(groups, first, m, seed=seed), m) for m in others)]


def _units(state: State, group: Group, place: Place, per: int = 1) -> Tensor:
    """(units / per, everything of so many units at this place)."""
    blocks = group.units // per
    t = state[place.tensor].movedim(place.axis, 0)[place.start : place.start + blocks * group.block]
    return t.reshape(blocks, -1)


def _there(layers: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for name in layers:
        if f"{name}.weight" not in shapes:
            raise unknown("linear layer", name, [n.removesuffix(".weight") for n in shapes if n.endswith(".weight")])


def _fit(groups: Sequence[Group], shapes: Mapping[str, tuple[int, ...]]) -> None:
    for g in groups:
        for p, n in g.lies:
            if p.tensor not in shapes:
                raise CommonweightError(f"{p.tensor}: no such tensor, but the units of {g.name} lie in it")
            size, wanted = shapes[p.tensor][p.axis], p.start + g.units // n * g.block
            alone = sum(q[:2] == p[:2] for q, _ in g.lies) == 1  # else they are parts of a fused tensor
            if size < wanted or (alone and p.start == 0 and size != wanted and g.block == 1):
                raise CommonweightError(
                    f"{p.tensor}: {counted(size, 'entry', 'entries')} along axis {p.axis}; {g.name} has {wanted} units"
                )
