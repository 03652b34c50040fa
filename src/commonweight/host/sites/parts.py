"""Attention and feed-forward parts of a block: what is given to them, and what they give before it is added.

Most are modules of their own. Where a block calls their layers itself (BERT's feed-forward part, fc1 and fc2 of OPT),
the part begins at its first layer and ends at its last.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from ...core import Site
from . import linear
from .block import Block
from .found import Found, Whole
from .norm import is_norm
from .physical import parameters
from .roles import role

# names beside those of `roles`
_FIRST = re.compile(r"(linear1|fc_in|dense_in|[Ww]i|ff1|\bffn)$")
_LAST = re.compile(r"(linear2|fc_out|dense_out|[Ww]o|ff2|\bffn_output)$")
_ASKS = re.compile(r"(query_proj|[Ww]q)$")
_ATTENTION = re.compile(r"(?i)att(entio)?n\w*\.")
_GIVES = re.compile(r"(?i)att(entio)?n\w*\.(wo|dense)$")
_FFN = re.compile(r"(mlp|ffn?|feed_forward|feedforward)$")


def find(block: str, whole: Whole) -> list[Found]:
    """The parts of one block. Sites are named after their module, or `ffn` and `attention` of what holds their layers;
    of a mixture its whole module is the part."""
    inside = {n: m for n, m in whole.names.items() if n.startswith(f"{block}.")}
    shapes = {n: s for n, m in inside.items() if (s := linear.shape(m)) is not None}
    made = [*_attention(block, inside, shapes), *_ffn(block, inside, shapes)]
    return [
        Found(
            Block(name, inside[last], out, kind, *(() if first == last else (inside[first], inside.get(_up(first))))),
            Site(name, out, inp, kind, "", False),
            True,
        )
        for name, kind, first, last, inp, out in made
    ]


Part = tuple[str, str, str, str, int, int]  # site, kind, first and last module, widths of what is given and given back
Shapes = dict[str, tuple[int, int, bool]]


def _attention(block: str, inside: dict[str, nn.Module], shapes: Shapes) -> list[Part]:
    out: dict[str, Part] = {}
    for name, module in inside.items():
        if isinstance(module, nn.MultiheadAttention):
            out[name] = name, "attention", name, name, module.embed_dim, module.embed_dim
    asking = [n for n in shapes if role(n) in ("query", "qkv") or _ASKS.search(n)]
    for last in (n for n in shapes if role(n) == "attn_out" or _GIVES.search(n)):
        home = _up(last)
        while home != _up(block) and not any(n.startswith(f"{home}.") for n in asking):
            home = _up(home)
        asks = next((n for n in asking if n.startswith(f"{home}.")), None)
        if home == _up(block) or asks is None:
            continue
        alone = home != block and _up(last) == _up(asks) == home and not _adds(inside[home])
        site = f"{home}.attention" if home == block else home
        ends = (home, home) if alone else (asks, last)
        out.setdefault(site, (site, "attention", *ends, shapes[asks][1], shapes[last][0]))
    return [*out.values()]


def _ffn(block: str, inside: dict[str, nn.Module], shapes: Shapes) -> list[Part]:
    mixture = next(
        (n for n in map(_up, (n for n in inside if re.search(r"(?<!experts)\.experts$", n))) if n != block), ""
    )
    if mixture and (wide := _width(inside, shapes, mixture)):
        return [(mixture, "ffn", mixture, mixture, wide, wide)]
    layers = [n for n in shapes if ".experts." not in n and not _ATTENTION.search(n.removeprefix(block))]
    first = [n for n in layers if role(n) in ("up", "gate") or _FIRST.search(n)]
    out: dict[str, Part] = {}
    for z in (n for n in layers if role(n) == "down" or _LAST.search(n)):
        fitting = [a for a in first if a != z and shapes[a][1] == shapes[z][0] and _fits(a, z, shapes)]
        if not fitting:
            continue
        a = max(fitting, key=lambda n: len(_home(n, z)))
        home = _home(a, z)
        alone = home != block and _up(a) == _up(z) and not _more(home, inside, shapes[z][0])
        alone = alone and not _adds(inside[home])
        site = home if alone else f"{home}.feed_forward" if f"{home}.ffn" in shapes else f"{home}.ffn"
        out.setdefault(site, (site, "ffn", *((home, home) if alone else (a, z)), shapes[a][1], shapes[z][0]))
    if out:
        return [*out.values()]
    for name in (n for n in inside if _FFN.search(n) and n not in shapes):
        wide = _width(inside, shapes, name)
        if wide and not _more(name, inside, wide) and not _adds(inside[name]):
            return [(name, "ffn", name, name, wide, wide)]
    return []


def _home(a: str, b: str) -> str:
    """The module that holds both."""
    both = []
    for x, y in zip(a.split(".")[:-1], b.split(".")[:-1]):
        if x != y:
            break
        both.append(x)
    return ".".join(both)


def _more(home: str, inside: dict[str, nn.Module], width: int) -> bool:
    """Whether a module does more than a feed-forward part: it has attention in it, or a norm of the sum behind it."""
    mine = {n.removeprefix(home): m for n, m in inside.items() if n.startswith(f"{home}.")}
    return any(_ATTENTION.search(f"{n}.") or (is_norm(m) and m.weight.shape[0] == width) for n, m in mine.items())  # type: ignore[union-attr,index]


def _adds(module: nn.Module) -> bool:
    """Whether it is given what its output is added to, and adds it itself (BLOOM, MPT)."""
    return "residual" in parameters(module)


def _fits(first: str, last: str, shapes: Shapes) -> bool:
    """Whether what the first layer makes can be what the last reads, a gate's half of it too."""
    return shapes[first][0] in (shapes[last][1], 2 * shapes[last][1])


def _width(inside: dict[str, nn.Module], shapes: Shapes, name: str) -> int:
    """Width of a part that is a module: what a layer of it, or a router, reads and another gives."""
    read = [s[1] for n, s in shapes.items() if n.startswith(f"{name}.")]
    given = {s[0] for n, s in shapes.items() if n.startswith(f"{name}.")}
    routers: list[Any] = [m.weight for n, m in inside.items() if n.startswith(f"{name}.") and hasattr(m, "weight")]
    both = next((w for w in read if w in given), 0)
    return both or next((w.shape[-1] for w in routers if getattr(w, "dim", int)() == 2), 0)


def _up(name: str) -> str:
    return name.rpartition(".")[0]
