"""Which weights a tenant holds beside its method, by the names that people give them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from ..core import WEIGHTLESS, CommonweightError, Site, fits
from ..methods import Beside
from ..methods.selective.tokens import wrong_tokens
from .experts import Stacked
from .hooked import HookedModel
from .names import named
from .sites import input_table, once
from .weights import packed

Names = str | Sequence[str] | None
Rows = Sequence[int] | Mapping[str, Sequence[int]] | None


def chosen(base: HookedModel, modules: Names, rows: Rows) -> tuple[Beside, list[Site]]:
    """(what is held, its sites in the model's order).

    modules: names of modules, the last parts of them as in PEFT's ``modules_to_save``, or globs; all weights of such a
    module are held, whatever their kind. rows: entries of the table of input tokens, or {name of a table or head:
    entries}. Of tied weights the table alone: the head follows.
    Raises: CommonweightError for names of nothing, for weights that no tenant can have, and for entries given twice.
    """
    copies = _copies(base, modules)
    entries = _entries(base, rows)
    if both := next((s for s in copies if s in entries), None):
        raise CommonweightError(f"{both}: whole, and by entries; leave one of them out")
    order = [s for s in base.every if s.name in copies or s.name in entries]
    order = once(base.ties, [s for s in order if s.name in copies]) + [s for s in order if s.name in entries]
    held = Beside(
        tuple(s.name for s in order if s.name in copies),
        tuple((s.name, tuple(entries[s.name])) for s in order if s.name in entries),
    )
    return held, order


def others(base: HookedModel, sites: list[Site], held: Beside) -> list[Site]:
    """The sites that are left to a method: those that are not held whole, nor follow one that is."""
    mine = {*held.copies, *(n for c in held.copies for n, _ in base.ties.get(c, ()))}
    return [s for s in sites if s.name not in mine]


def _fits(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}") or fits(name, wanted)


def _copies(base: HookedModel, modules: Names) -> set[str]:
    if modules is None:
        return set()
    names = [n.strip() for n in modules.split("|")] if isinstance(modules, str) else modules
    if not isinstance(names, Sequence) or not all(isinstance(n, str) and n for n in names):
        raise CommonweightError(
            f"modules_to_save={modules!r}; wanted names of modules, as in ['embed_tokens', 'lm_head']"
        )
    found: set[str] = set()
    every = dict(named(base.model))
    for wanted in names:
        homes = [n for n in every if n and _fits(n, wanted)]
        mine = [
            s
            for s in base.every
            if (s.kind == "head" or s.kind not in WEIGHTLESS) and any(_within(s.name, h) for h in homes)
        ]
        if any(s.kind == "head" for s in mine):
            raise CommonweightError(
                f"modules_to_save: {wanted} is where a tenant's own head stands; it comes with labels="
            )
        if not mine:
            tops = sorted({n.rpartition(".")[2] for n, m in every.items() if n and [*m.parameters(recurse=False)]})
            raise CommonweightError(
                f"modules_to_save: no module with weights is called {wanted!r}; this model has {', '.join(tops[:20])}"
            )
        _whole(base, wanted, [every[h] for h in homes], mine)
        found |= {s.name for s in mine}
    return found


def _within(site: str, home: str) -> bool:
    return site == home or site.startswith((f"{home}.", f"{home}["))


def _whole(base: HookedModel, wanted: str, modules: list[nn.Module], mine: list[Site]) -> None:
    """Refuses a module that has a weight which no tenant can hold."""
    known: set[int] = set()
    for s in mine:
        at = base.modules[s.name.split("[")[0]]
        if isinstance(at, Stacked) and s.kind == "router":
            raise CommonweightError(f"modules_to_save: {s.name} is a router of its own kind, which is not held whole")
        slots = at.module._parameters if packed(at.module) else [n for n in (at.slot, at.bias_slot) if n]
        known |= {id(at.module._parameters.get(n)) for n in slots}
    for module in modules:
        for name, p in module.named_parameters():
            if id(p) not in known:
                raise CommonweightError(
                    f"modules_to_save: {wanted} has {name}, which no tenant can hold as its own; name the parts of it "
                    "that can be"
                )


def _entries(base: HookedModel, rows: Rows) -> dict[str, list[int]]:
    if rows is None:
        return {}
    table = input_table(base.inner, base.modules)
    if not isinstance(rows, Mapping):
        if table is None:
            raise CommonweightError(
                "token_rows: this model names no table of input tokens; where it has one, give its name: "
                "{'embeddings': [5, 7]}"
            )
        rows = {table: rows}
    out: dict[str, list[int]] = {}
    for wanted, ids in rows.items():
        mine = [s for s in base.every if s.kind in ("embedding", "linear") and s.rows is None and _fits(s.name, wanted)]
        if not mine:
            raise CommonweightError(f"token_rows: this model has no table or head {wanted!r}")
        given, ids = ids, [*ids] if isinstance(ids, Sequence) and not isinstance(ids, str) else []
        if not ids or not all(type(i) is int for i in ids) or wrong_tokens(ids) is not None:
            raise CommonweightError(
                f"token_rows={given!r}; wanted numbers of entries, 0 or more, each once, as in [5, 7]"
            )
        for s in mine:
            out[s.name] = ids
    for name in [n for n in out if n in base.ties]:
        for other, _ in base.ties[name]:
            if out.get(other) == out[name]:
                del out[other]
    return out
