"""How many heads an attention has, and how wide they are, as the model says it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from ...core import Site
from ..names import said
from .roles import role

WIDTH = "head_dim", "attention_head_size", "key_value_proj_dim", "dim_per_head", "d_head", "d_kv"
QUERIES = "num_attention_heads", "num_heads", "n_heads", "n_head", "heads"
KEYS = "num_key_value_heads", "num_kv_heads", *QUERIES


def number(module: Any, config: Any, names: tuple[str, ...]) -> int:
    """The first of these numbers that the module says, else its layer's config; 0 where neither does."""
    found = (said(o, n, getattr(module, "layer_idx", None)) for o in (module, config) for n in names)
    return next((v for v in found if isinstance(v, int) and v > 0), 0)


def in_front(site: Site, names: Mapping[str, nn.Module], config: Any = None) -> int:
    """Heads of the attention whose output layer a site is: what the nearest module around it says that has queries, or
    one in it, else its config, else `config`, the whole model's. 0 where none of them says a number that divides the
    layer's width.

    names: the model's modules."""
    at = site.name.split("[")[0]
    while "." in at:
        at = at.rpartition(".")[0]
        inside = dict(names[at].named_modules()) if at in names else {}
        own = number(inside.get(""), None, QUERIES)
        if not own and not any(role(n) in ("query", "qkv") for n in inside):
            continue
        says = [(m, None) for m in inside.values()]
        says += [(None, c) for m in inside.values() if (c := getattr(m, "config", None)) is not None]
        told = [*(number(*s, QUERIES) for s in (*says, (None, config)))]
        told += [site.inp // w for s in says if (w := number(*s, WIDTH))]
        return next((n for n in told if n and site.inp % n == 0), 0)
    return 0
