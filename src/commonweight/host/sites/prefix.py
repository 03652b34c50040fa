"""Where keys and values can stand in front of those of an attention: one site for each self-attention."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from typing import Any

from torch import nn

from ...core import Site
from . import linear
from .families import towers
from .found import Found, Whole
from .further import reads_both_ways, shared
from .heads import KEYS, QUERIES, WIDTH, number
from .physical import Physical, parameters, plain_class
from .roles import role

_ACROSS = re.compile(r"(?i)(enc_?dec|encoder_attn|cross_?att|multi_modal)\w*")


class Ahead(Physical):
    """Keys and values before those that an attention makes. heads: of keys; width: of one head. causal: whether a token
    sees those before it alone, where the attention does not say it."""

    forms = "none"

    def __init__(self, name: str, module: nn.Module, heads: int, width: int, causal: bool):
        super().__init__(name, module, "prefix", False)
        self.heads, self.width, self.causal = heads, width, causal

    @property
    def role(self) -> str:
        return "causal" if getattr(self.module, "is_causal", self.causal) else ""

    @property
    def flagged(self) -> nn.Module:
        """One of the attention's projections: a site in training must not put the dropout of attention in force."""
        return next(m for m in self.module.modules() if linear.shape(m) is not None)


class Front(Physical):
    """Tokens in front of those of a row: the module is the decoder that they run through by themselves."""

    forms = "none"

    def __init__(self, name: str, module: nn.Module, joins: list[str]):
        super().__init__(name, module, "prompt", False)
        self.joins = joins  # the prefix sites that its keys and values come to

    @property
    def flagged(self) -> nn.Module:
        return next(m for m in self.module.modules() if isinstance(m, nn.Embedding))


def front(table: str | None, found: list[Found], whole: Whole) -> list[Found]:
    """One for a causal decoder that takes vectors in place of tokens. table: of its input tokens."""
    at = [f.at for f in found if f.default]
    if table is None or not at or getattr(getattr(whole.model, "config", None), "is_encoder_decoder", False):
        return []
    if not all(getattr(a.module, "is_causal", False) is True for a in at):
        return []
    home = shared([table, *(a.name for a in at)])
    if not {"inputs_embeds", "use_cache"} <= {*parameters(whole.names[home])}:
        return []
    width = whole.names[table].embedding_dim
    name = f"{table}.prompt"
    made = Front(name, whole.names[home], [a.name for a in at])
    return [Found(made, Site(name, width, width, "prompt", "causal", False), True)]  # type: ignore[arg-type]


def find(whole: Whole) -> list[Found]:
    """One for each self-attention that calls transformers' attention interface; of a model of several senses those of
    its language alone are default. Attention with keys and values of different widths is left out."""
    tower = towers(whole.model)
    made = [(n, at) for n, m in whole.names.items() if (at := _site(n, m, whole)) is not None]
    speaks = any(tower(n) == "language" for n, _ in made)
    return [
        Found(at, Site(at.name, at.heads * at.width, at.width, "prefix", at.role, False),
              whole.inside(n) and (not speaks or tower(n) == "language"))
        for n, at in made
    ]  # fmt: skip


def _site(name: str, module: nn.Module, whole: Whole) -> Ahead | None:
    code = getattr(inspect.unwrap(plain_class(module).forward), "__code__", None)
    if code is None or "get_interface" not in code.co_names:
        return None
    across = getattr(module, "is_cross_attention", False) or any(_ACROSS.fullmatch(p) for p in name.split("."))
    found = None if across else _shape(name, module, whole.names)
    if found is None:
        return None
    causal = hasattr(module, "is_causal") or not reads_both_ways(whole.model)
    return Ahead(f"{name}.prefix" if name else "prefix", module, *found, causal)


def _shape(name: str, module: Any, names: Mapping[str, nn.Module]) -> tuple[int, int] | None:
    """(heads of keys, width of one)."""
    config = getattr(module, "config", None)
    widths = {role(n): s[0] for n, m in names.items() if n.startswith(f"{name}.") and (s := linear.shape(m))}
    keys, heads = widths.get("key"), number(module, config, KEYS)
    width = number(module, config, WIDTH)
    if keys is None and "qkv" in widths and heads:
        keys = heads * (width or widths["qkv"] // (3 * heads))
    if keys is None or widths.get("value", keys) != keys:
        return None
    if not width:
        many = number(module, config, QUERIES)
        width = widths.get("query", keys) // many if many else 0
    return (keys // width, width) if width and keys % width == 0 else None
