"""Where vectors can stand among the tokens of an encoder's row: one site, beside the table of its input tokens."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import nn

from ...core import Site
from .found import Found, Whole
from .physical import Physical, parameters, plain_class

TABLE = re.compile(r"(wpe|pos(ition)?s?_embed\w*|embed_positions?)$")


class Further(Physical):
    """Vectors as further positions of the pass. module: the encoder, whose rows get longer within it; embeds: its part
    that makes vectors of tokens, with their positions."""

    forms = "none"

    def __init__(self, name: str, module: nn.Module, embeds: nn.Module):
        super().__init__(name, module, "prompt", False)
        self.embeds = embeds

    @property
    def flagged(self) -> nn.Module:
        return next(m for m in self.module.modules() if isinstance(m, nn.Embedding))


def find(table: str | None, ahead: list[Found], whole: Whole) -> list[Found]:
    """One for an encoder that takes vectors in place of tokens, and counts positions by a table alone. table: of its
    input tokens. ahead: its prefix sites."""
    at = [f.at for f in ahead if f.default]
    if table is None or not at or getattr(getattr(whole.model, "config", None), "is_encoder_decoder", False):
        return []
    if any(getattr(a.module, "is_causal", True) for a in at):
        return []
    home = shared([table, *(a.name for a in at)])
    if not {"inputs_embeds", "attention_mask"} <= {*parameters(whole.names[home])}:
        return []
    if (embeds := _embeds(table, home, whole.names)) is None:
        return []
    width = whole.names[table].embedding_dim
    name = f"{table}.prompt"
    made = Further(name, whole.names[home], whole.names[embeds])
    return [Found(made, Site(name, width, width, "prompt", "", False), True)]  # type: ignore[arg-type]


def shared(names: list[str]) -> str:
    """The innermost module that holds all of these."""
    out = []
    for parts in zip(*(n.split(".") for n in names)):
        if len({*parts}) > 1:
            break
        out.append(parts[0])
    return ".".join(out)


def positional(name: str, module: nn.Module) -> bool:
    """Whether it is a table of positions, which is given them."""
    plain = isinstance(module, nn.Embedding) and plain_class(module).forward is nn.Embedding.forward
    return plain and TABLE.search(name.rpartition(".")[2]) is not None


def _embeds(table: str, home: str, names: Mapping[str, nn.Module]) -> str | None:
    """The part of the encoder around the table that takes vectors in place of tokens, reads no mask and no neighbours,
    and has the table of positions."""
    at = table.rpartition(".")[0]
    takes = {*parameters(names[at])}
    if at == home or "inputs_embeds" not in takes or "attention_mask" in takes:
        return None
    if getattr(names[at], "trigram_input", False):  # MobileBERT: a token's vector is made of three
        return None
    return at if any(n.startswith(f"{at}.") and positional(n, m) for n, m in names.items()) else None
