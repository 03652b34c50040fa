"""APT's pruning: heads and neurons of the base that a tenant leaves out, by what they say and what the loss asks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from ...address import WHOLE
from ...bind import Pruned
from ...core import ONES, CommonweightError, Constant, Plan, Pool, Read, Site, Use
from ...core.schedule import Edit, Moment, Pools, State
from ..blocks import by_block, parts

BEFORE = {"attn_out": ("query", "key", "value", "qkv"), "down": ("up", "gate")}  # whose rows go with its columns
SCORE = "salience/"


class Block(NamedTuple):
    """The heads of an attention, or the neurons of a feed-forward layer. site: behind them; width: numbers of its input
    that are one part's; numbers: of the base's that a part is made of."""

    site: str
    parts: int
    width: int
    numbers: int


def blocks(sites: Sequence[Site], config: Any) -> list[Block]:
    """Numbers of a part: its columns of the layer behind, and its rows and biases of those in front that are among the
    sites. Keys and values that several heads share are no head's. Raises: CommonweightError where there is no part."""
    found = []
    for block in by_block([s for s in sites if s.kind == "linear"]):
        by_role = {r: [s for s in block if s.role == r] for r in (*BEFORE, *BEFORE["attn_out"], *BEFORE["down"])}
        for role, before in BEFORE.items():
            for i, site in enumerate(by_role[role]):
                if not (n := parts(site, config)):
                    continue
                mine = [by_role[r][i] for r in before if len(by_role[r]) == len(by_role[role])]
                rows = sum(_rows(s, site.inp) * (s.inp + s.bias) for s in mine)
                found.append(Block(site.name, n, site.inp // n, site.inp // n * (site.out + rows)))
    if not found:
        raise CommonweightError(
            "apt: prune wants the layer behind an attention's heads, or behind a feed-forward layer's neurons, among "
            "its sites; choose them with sites, and say heads where the model does not"
        )
    return found


def _rows(site: Site, width: int) -> int:
    """Rows of a layer that belong to each number of what is behind it: of a fused one several."""
    if site.role == "qkv":
        return 3 if site.out == 3 * width else 1
    return site.out // width


def masked(plan: Plan, sites: Sequence[Site], config: Any, scale: float) -> Plan:
    """Masks at the sites behind heads and neurons, in front of their updates."""
    low = {u.site: u for u in plan.uses}
    pools, kind = dict(plan.pools), "kept" if config.masks == "numbers" else "bits"
    for b in blocks(sites, config):
        mask = Pool((b.parts,), ONES, train=False)
        bits = Pool((-(-b.parts // 8),), Constant(255.0), train=False, dtype="uint8")
        pools[f"{b.site}.{kind}"] = mask if kind == "kept" else bits
        reads: dict[str, Any] = dict(low[b.site].reads) if b.site in low else {}
        reads["m" if kind == "kept" else "bits"] = Read(WHOLE, (f"{b.site}.{kind}",))
        low[b.site] = Use(b.site, Pruned(b.parts, b.width, b.numbers, scale, config.dropout), reads)
    return Plan(pools, tuple(low.values()))


@dataclass(frozen=True)
class Pruning:
    """After every step: s <- beta s + (1 - beta) (sum |h| sum |dL/dh|, summed over a part, + sqrt(max(0, kurtosis))), a
    part's score is s over its numbers, and the best are kept whose numbers together are fewer than the target. A mask
    goes by `move` towards 1 or 0, and is there at the end of each round.

    growing: the schedule of the ranks, whose rounds these are. h: what the site is given, masked.
    """

    config: Any
    growing: Any
    blocks: tuple[Block, ...]
    scale: float
    resizes: ClassVar[bool] = True

    def begin(self, plan: Plan, pools: Pools, steps: int) -> tuple[State, Edit]:
        state, edit = self.growing.begin(plan, pools, steps)
        if self.config.ranks:
            return state, edit
        return {**state, **{SCORE + b.site: torch.zeros(b.parts) for b in self.blocks}}, edit

    def settled(self, step: int, steps: int) -> bool:
        return self.growing.settled(step, steps)

    def blank(self, pools: Pools) -> Pools:
        device, out = next(iter(pools.values())).device, {}
        for b in self.blocks:
            for kind in ("size", "sum", "pull"):
                out[f"{b.site}/{kind}"] = torch.zeros(b.parts * b.width, device=device)
            out[f"{b.site}/tokens"] = torch.zeros(1, device=device)
        return out

    def states(self, site: str, states: Tensor, real: Tensor) -> Pools:
        h = states.float() * real[:, None]
        return {f"{site}/size": h.abs().sum(0), f"{site}/sum": h.sum(0), f"{site}/tokens": real.sum()[None]}

    def grads(self, site: str, grads: Tensor, real: Tensor) -> Pools:
        return {f"{site}/pull": (grads.float().abs() * real[:, None]).sum(0)}

    def after(self, at: Moment, state: State) -> tuple[State, Edit]:
        mine = {k: v for k, v in state.items() if k.startswith(SCORE)}
        rest, edit = self.growing.after(at, {k: v for k, v in state.items() if k not in mine})
        if not mine or self.settled(at.step - 1, at.steps):
            return {**rest, **mine}, edit
        beta = self.config.beta
        for b in self.blocks:
            if at.counted[f"{b.site}/tokens"] > 0:
                mine[SCORE + b.site] = beta * mine[SCORE + b.site].cpu() + (1 - beta) * self.salience(b, at).cpu()
        if at.step > self.config.begin * at.steps:
            edit = edit._replace(values={**edit.values, **self.masks(mine, at)})
        return {**rest, **mine}, edit

    def salience(self, block: Block, at: Moment) -> Tensor:
        """(parts,), of one step."""
        size, total, pull, tokens = (at.counted[f"{block.site}/{k}"] for k in ("size", "sum", "pull", "tokens"))
        found = (size * pull).view(block.parts, -1).sum(1)
        if not self.config.kurtosis:
            return found
        w = at.weight(block.site).float()
        if f"{block.site}.A" in at.pools:
            w = w + self.scale * at.pools[f"{block.site}.B"] @ at.pools[f"{block.site}.A"]
        said = (w * (total / tokens)).view(len(w), block.parts, -1).transpose(1, 2).reshape(-1, block.parts)
        return found + kurtosis(said).clamp(min=0).sqrt()

    def masks(self, salience: Mapping[str, Tensor], at: Moment) -> dict[str, Tensor]:
        when = self.growing.steps_of(at.steps)
        hard = at.step in when
        done = len([w for w in when if w <= at.step]) if hard else len([w for w in when if w < at.step]) + 1
        kept = self.kept(salience, left(1 - self.config.prune, done / self.config.rounds))
        out = {}
        for b, yes in zip(self.blocks, kept):
            old = at.pools[f"{b.site}.kept"]
            goal = yes.to(old)
            out[f"{b.site}.kept"] = goal if hard else (old + self.config.move * (2 * goal - 1)).clamp(0, 1)
        return out

    def kept(self, salience: Mapping[str, Tensor], share: float) -> list[Tensor]:
        """Which parts of each block are kept, so that they have less than this share of all numbers."""
        found = [salience[SCORE + b.site].cpu() for b in self.blocks]
        if not any(bool(s.any()) for s in found):
            raise CommonweightError(
                f"apt: {self.blocks[0].site}: nothing was shown of its heads and neurons until now; checkpoints need "
                "use_reentrant=False"
            )
        numbers = torch.cat([torch.full((b.parts,), b.numbers) for b in self.blocks])
        order = torch.cat([s / b.numbers for s, b in zip(found, self.blocks)]).argsort(descending=True, stable=True)
        sizes = numbers[order].cumsum(0)
        yes = torch.zeros(len(order), dtype=torch.bool)
        yes[order[: int(torch.searchsorted(sizes, share * float(numbers.sum())))]] = True
        return list(yes.split([b.parts for b in self.blocks]))


def left(last: float, done: float) -> float:
    """The share of the numbers that is left, cubic_gradual: c + (1 - c) ((T1 - t) / (T1 - T0))^3."""
    return last + (1 - last) * (1 - done) ** 3


def kurtosis(x: Tensor) -> Tensor:
    """Of each column of (n, p), less 3, by the deviation with n - 1; -3 where all are equal, as the released code."""
    z = (x - x.mean(0)) / x.std(0)
    return z.nan_to_num(0, 0, 0).pow(4).mean(0) - 3
