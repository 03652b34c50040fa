"""A base whose vocabulary grows under its tenants: each of them knows the entries that were there when it was made.

Rows of the table of input tokens and of the head are only added at the end. A tenant that holds the added rows itself
relies on those before them alone, so that its file fits every base that begins with the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..core import CommonweightError, Site
from .fingerprint import of_base
from .sites import input_table, output_head, said
from .tenant import Tenant

if TYPE_CHECKING:
    from .hooked import HookedModel


def relied(base: HookedModel, tenant: Tenant) -> int | None:
    """How many of the base's rows the tenant reads: those that it does not hold itself at the end of its vocabulary, at
    the table and at a head that is not tied to it."""
    table, head = input_table(base.inner, base.modules), output_head(base.inner, base.modules)
    size = tenant.vocabulary
    if size is None or table is None:
        return size
    first = _first(tenant, table, size)
    if head is None or head in {n for n, _ in tenant.ties.get(table, ())}:
        return first
    return max(first, _first(tenant, head, size))


def invocable(base: HookedModel, config: Any) -> None:
    """Raises: CommonweightError for an invocation with a token that no row can have."""
    size = base.vocabulary
    if size is not None and (beyond := [t for t in getattr(config, "invocation", ()) if t >= size]):
        raise CommonweightError(
            f"invocation has the token {beyond[0]}, and the model's vocabulary ends at {size - 1}: it would "
            "never act; give ids of this model's tokenizer, or host.resize_vocabulary first"
        )


def _first(tenant: Tenant, site: str, size: int) -> int:
    if site in tenant.beside.copies:
        return 0
    own: set[int] = set()
    for use in tenant.plan.uses:
        if use.site == site and "ids" in use.reads:
            own.update(tenant.pools[use.reads["ids"].pools[0]].tolist())
    while size and size - 1 in own:
        size -= 1
    return size


def fingerprint(base: HookedModel, rows: int | None) -> str:
    """That of the base as it was with so many entries."""
    if rows is None or base.vocabulary is None or rows >= base.vocabulary:
        return base.fingerprint
    return of_base(base.model, base.heads, {id(p): rows for p in _grown(base)})


def _grown(base: HookedModel) -> list[Tensor]:
    """Parameters that have a row for each entry: the table, the head, and what stands beside its weight."""
    table, head = input_table(base.inner, base.modules), output_head(base.inner, base.modules)
    homes = [base.modules[n].module for n in (table, head) if n is not None]
    if (more := said(base.inner, "get_per_layer_input_embeddings")) is not None:  # Gemma 3n and 4
        homes.append(more)
    if head is not None:  # BERT keeps the bias of its head one level up
        names = head.split(".")
        around = {".".join(names[:i]) for i in range(1, len(names))}
        homes += [m for n, m in base.model.named_modules() if n in around]
    size = base.vocabulary
    return [p for m in homes for p in m._parameters.values() if p is not None and p.dim() and p.shape[0] == size]


def placed(base: HookedModel, where: str, wanted: Mapping[str, tuple[int, int]]) -> list[Site]:
    """The sites that a file names, of the sizes that they had there, in the model's order.

    Raises: CommonweightError for sites that are not here, or that have another shape: a table or a linear layer may
    have more rows by now, and the table and the head fewer, which `ready` adds.
    """
    every = {s.name: s for s in base.every}
    grows = {input_table(base.inner, base.modules), output_head(base.inner, base.modules)}
    for name, shape in wanted.items():
        if name not in every:
            raise CommonweightError(f"{where}: made for another base: this one has no site {name}")
        s = every[name]
        table = s.kind == "embedding"
        same = (s.out == shape[0]) if table else (s.inp == shape[1])
        more = (s.inp > shape[1]) if table else (s.kind == "linear" and s.rows is None and s.out > shape[0])
        if (s.out, s.inp) != shape and not (same and name in grows and (more or base.vocabulary)):
            raise CommonweightError(f"{where}: made for another base: {name} is {shape} there, {(s.out, s.inp)} here")
    return [s._replace(out=wanted[s.name][0], inp=wanted[s.name][1]) for s in base.every if s.name in wanted]


def brings(base: HookedModel, where: str, size: int | None, rows: int | None) -> None:
    """Raises: CommonweightError where the base would have to bring entries that it has not. size: of the tenant's
    vocabulary. rows: those of the base that it reads."""
    here = base.vocabulary
    if size is not None and rows is not None and here is not None and rows > here:
        raise CommonweightError(
            f"{where}{': ' if where else ''}made for {size} tokens, and this base has {here}: {rows - here} rows of "
            f"the table or the head are the base's own there. Open the base that it was made on, or resize this one "
            f"(model.resize_token_embeddings({size})) and give its new rows their numbers"
        )


def ready(base: HookedModel, size: int | None, tenants: Iterable[Tenant]) -> None:
    """Adds the entries that a tenant brings itself. size: of its vocabulary."""
    if size is not None and base.vocabulary is not None and size > base.vocabulary:
        grow(base, size, tenants)


def grow(base: HookedModel, size: int, tenants: Iterable[Tenant]) -> None:
    """Gives the table and the head more entries: the mean of those that the base has of its own.

    The base and the tenants that are there say none of them. Cost: a copy of the table and of the head.
    """
    here = base.vocabulary
    inner = None if here is None else _owner(base)
    if here is None or inner is None:
        raise CommonweightError(f"{type(base.inner).__name__} has no table of tokens that could grow")
    if not isinstance(size, int) or isinstance(size, bool) or size < here:
        raise CommonweightError(f"the vocabulary has {here} entries; wanted a whole number above, {size!r} came")
    if base.limit.held:
        raise CommonweightError(
            f"the vocabulary would grow from {here} to {size} entries, and {base.limit.held} is at work on this model; "
            f"do it before, with host.resize_vocabulary({size})"
        )
    own = base.limit.own or here
    inner.resize_token_embeddings(size, mean_resizing=False)
    for made in (inner.get_input_embeddings(), inner.get_output_embeddings()):
        if made is not None:
            made.train(inner.training)  # a new layer is in training mode, whatever the model is in
    base.follow(tenants)
    if (head := output_head(base.inner, base.modules)) is not None:
        home: Any = base.modules[head].module
        home.out_features = size  # BLIP's says the old number
    base.limit.own = own
    with torch.no_grad():
        for p in {id(p): p for p in _grown(base)}.values():
            p[here:] = p[:own].float().mean(0).to(p) if p.dim() > 1 else 0


def _owner(base: HookedModel) -> Any:
    """The outermost model that can put another table in the place of the one of input tokens: of CLIP its model of
    texts, of an encoder of images with a decoder that decoder."""
    name = input_table(base.inner, base.modules)
    table = None if name is None else base.modules[name].module
    for m in (m for m in base.inner.modules() if callable(getattr(m, "resize_token_embeddings", None))):
        try:
            mine: Any = m
            if (now := mine.get_input_embeddings()) is table:
                mine.set_input_embeddings(now)
                return m
        except (NotImplementedError, AttributeError):
            continue
    return None
