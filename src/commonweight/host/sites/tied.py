"""Weights that several modules read: tables of embeddings, and the heads that are tied to them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ...core import Site
from .physical import Physical

Ties = dict[str, list[tuple[str, bool]]]


def ties(modules: Mapping[str, Physical]) -> Ties:
    """For each table: the other sites that read its weight, and whether they read it transposed, as heads do."""
    groups: dict[int, list[str]] = {}
    for name, at in modules.items():
        weight = at.module._parameters.get(at.slot)
        if weight is not None and at.kind in ("embedding", "linear"):
            groups.setdefault(id(weight), []).append(name)
    out: Ties = {}
    for group in (g for g in groups.values() if len(g) > 1):
        for name in (n for n in group if modules[n].kind == "embedding"):
            out[name] = [(o, modules[o].kind != "embedding") for o in group if o != name]
    return out


def once(found: Ties, sites: list[Site]) -> list[Site]:
    """Without sites whose weight is read at a table before them: the change there is theirs too."""
    names = {s.name for s in sites}
    follow: set[str] = set()
    for name in (s.name for s in sites if s.name in found):
        if name not in follow:
            follow.update(other for other, _ in found[name] if other in names)
    return [s for s in sites if s.name not in follow]


def input_table(model: nn.Module, modules: Mapping[str, Physical]) -> str | None:
    """The site that turns numbers of tokens into vectors; None for a model that says none."""
    return _of(said(model, "get_input_embeddings"), modules, "embedding")


def output_head(model: nn.Module, modules: Mapping[str, Physical]) -> str | None:
    """The site that turns vectors into scores of the vocabulary; None for a model that says none."""
    return _of(said(model, "get_output_embeddings", deep=True), modules, "linear")


def scores(model: nn.Module, modules: Mapping[str, Physical], sites: Sequence[Site]) -> set[str]:
    """The sites that make scores of the vocabulary: the head, and the last norm before it, of its width, that stands
    behind the blocks. Empty for a model without a head, and for one with an encoder of its own, whose decoder may
    scale what it norms."""
    head, config = output_head(model, modules), getattr(model, "config", None)
    if head is None or getattr(config, "is_encoder_decoder", False):
        return set()
    width = next(s.inp for s in sites if s.name == head)
    order = [s for s in sites if s.kind == "block" or (s.kind == "norm" and s.out == width)]
    blocks = [i for i, s in enumerate(order) if s.kind == "block"]
    behind = [s.name for s in order[blocks[-1] if blocks else 0 :] if s.kind == "norm"]
    inside = tuple(f"{order[i].name}." for i in blocks)
    norms = [n for n in behind if not n.startswith(inside)]
    return {head, norms[-1]} if norms else set()


def said(model: nn.Module, ask: str, deep: bool = False) -> nn.Module | None:
    """What the model says of itself, or the first of its parts that does where something was put around it. deep: also
    where the model itself says that there is none, as BLIP does of its decoder's head."""
    for m in model.modules():
        get = getattr(m, ask, None)
        try:
            found = get() if callable(get) else None
        except (NotImplementedError, AttributeError):
            continue
        if isinstance(found, nn.Module):
            return found
        if callable(get) and hasattr(m, "config") and not deep:
            return None
    return None


def _of(module: nn.Module | None, modules: Mapping[str, Physical], kind: str) -> str | None:
    return next((n for n, at in modules.items() if at.module is module and at.kind == kind), None)
