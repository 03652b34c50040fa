"""Queries beside the blocks of a list: each block answers to some, which read its tokens and are not read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from ...core import Site
from .block import Block, lists
from .found import Found
from .physical import Physical


class Queried(Block):
    """Its input, (B, T, n d), is what each of the n blocks answers to T queries of a row, side by side; its output is
    the last block's. ahead: the prefix site of each block's attention, whose keys and values the queries read."""

    def __init__(self, name: str, blocks: list[nn.Module], width: int, ahead: list[str]):
        super().__init__(name, blocks[-1], width, "queries")
        self.blocks, self.ahead = blocks, ahead

    def main(self, x: Tensor, y: Any) -> int | None:
        return super().main(x[..., : self.width], y)


def find(sites: Sequence[Site], modules: Mapping[str, Physical], ahead: Sequence[Found]) -> list[Found]:
    """One for each list of two or more blocks of one width, of which each has one self-attention that asks
    transformers' interface for its function."""
    out: list[Found] = []
    for home, mine in lists(sites).items():
        blocks: list[Any] = [modules[s.name].module for s in mine]
        inside = [[f.at.name for f in ahead if f.at.name.startswith(f"{s.name}.")] for s in mine]
        alike = len({s.out for s in mine}) == 1 and len(set(map(id, blocks))) == len(blocks)
        if len(mine) < 2 or not alike or any(len(names) != 1 for names in inside):
            continue
        d, name = mine[0].out, f"{home}.queries"
        site = Site(name, d, len(mine) * d, "queries", "", False)
        out.append(Found(Queried(name, blocks, d, [names[0] for names in inside]), site, True))
    return out
