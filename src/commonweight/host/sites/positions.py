"""Where what is added to a token's vector goes by its position in the row: behind the table of input tokens."""

from __future__ import annotations

from torch import nn

from ...core import Site
from .found import Found
from .further import Further
from .physical import Physical
from .prefix import Front


class Positions(Physical):
    """Its input, (B, T, 1), is which token of its row each is; its output are the tokens' vectors. stack: the module
    that reads these."""

    forms = "none"

    def __init__(self, name: str, table: nn.Module, stack: nn.Module):
        super().__init__(name, table, "positions", False)
        self.stack = stack


def find(front: list[Found], table: str | None, module: nn.Module | None) -> list[Found]:
    """One for a model that takes prompts. table: of its input tokens. Before a decoder it is the encoder's, where the
    decoder's tokens do not come from the same one."""
    if not front or table is None or module is None:
        return []
    at, site = front[0].at, front[0].site
    assert isinstance(at, Front | Further)
    if isinstance(at, Further):
        table, module = at.name.removesuffix(".prompt"), at.table
        if at.decoder is not None and any(m is module for m in at.decoder.modules()):
            return []
    name = f"{table}.positions"
    return [Found(Positions(name, module, at.module), Site(name, site.out, 1, "positions", "", False), True)]
