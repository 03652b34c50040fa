"""The trunk of a model: what its blocks give, one after another, without gradients, and where it is changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from ...core import CommonweightError, Site
from .block import Block, lists
from .found import Found
from .physical import Physical


class Trunk(Block):
    """The blocks of one list. Its input, (B, T, (n + 1) d + 1), is what the first is given and what each of the n
    gives, side by side, and last 1 for each token and 0 for padding; its output is the last one's.

    causal: whether a token sees those before it alone.
    """

    def __init__(self, name: str, blocks: list[nn.Module], width: int, causal: bool):
        super().__init__(name, blocks[-1], width, "trunk")
        self.blocks, self.causal = blocks, causal

    def begun(self, x: Tensor, there: Tensor | None) -> Tensor:
        """Memory for the states, with what the first block is given in it. Raises: CommonweightError where that is no
        row of tokens."""
        if x.dim() != 3 or x.shape[-1] != self.width:
            raise CommonweightError(
                f"{self.name}: its first block is given {tuple(x.shape)}; wanted (rows, tokens, {self.width}). A "
                "network beside the blocks cannot read them; take a method that changes weights, such as lora"
            )
        states = x.new_empty(*x.shape[:2], (len(self.blocks) + 1) * self.width + 1)
        self.lay(states, 0, x)
        states[..., -1] = 1 if there is None else there.to(x.dtype)
        return states

    def lay(self, states: Tensor, place: int, x: Tensor) -> None:
        if x.shape[:2] != states.shape[:2]:
            raise CommonweightError(
                f"{self.name}: a block gives {tuple(x.shape)}, the first was given {tuple(states.shape[:2])} tokens; a "
                "network beside the blocks needs as many at every depth"
            )
        states[..., place * self.width : (place + 1) * self.width] = x.detach()


def find(sites: list[Site], modules: Mapping[str, Physical]) -> list[Found]:
    """Two for each list of two or more blocks of one width: `trunk`, and of three states or more `early`, which ends
    before the last block."""
    out: list[Found] = []
    for home, mine in lists(sites).items():
        blocks: list[Any] = [modules[s.name].module for s in mine]
        if len(mine) < 2 or len({s.out for s in mine}) > 1 or len(set(map(id, blocks))) < len(blocks):
            continue
        d, causal = mine[0].out, mine[0].role == "causal"
        for word, some in (("trunk", blocks), ("early", blocks[:-1])):
            name = f"{home}.{word}"
            site = Site(name, d, (len(some) + 1) * d + 1, "trunk", "early" if word == "early" else "whole", False)
            out.append(Found(Trunk(name, some, d, causal), site, True))
    return out
