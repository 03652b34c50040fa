"""Tenants as adapters of other tools."""

from __future__ import annotations

import copy
from inspect import signature
from pathlib import Path
from typing import Any

from ...bind import Activated, Magnitude
from ...core import CommonweightError, counted, unknown
from ...formats import atomic, gguf, mlx
from ...formats.changes import EXACT, Change
from ...formats.peft import low_rank, short
from ..hooked import HookedModel
from ..peft import export_peft
from ..peft.changes import opaque
from ..peft.mixtures import factors
from ..peft.names import within
from ..peft.writing import as_kept, low_of
from ..sites import blocks
from ..tenant import Entry, Tenant
from . import pipelines
from .about import about
from .mixtures import projections

PIPELINES = "diffusers", "kohya"
FORMATS = "peft", "gguf", "mlx", *PIPELINES


def export(
    base: HookedModel, tenant: Tenant, path: Path, format: str, *, overwrite: bool = False, **options: Any
) -> Path:
    """See `Host.export`."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    for option in options.keys() - (taken := _options(format)):
        raise unknown(f"option of {format}", option, taken)
    if format == "peft":
        return export_peft(base, tenant, path, overwrite=overwrite, **options)
    if tenant.labels is not None:
        raise CommonweightError(
            f"{tenant.name}: has a classification head of {counted(len(tenant.labels), 'label')}, for which "
            f"{format} has no "
            "place; export to peft, which leaves it out and says so"
        )
    if tenant.held:
        raise CommonweightError(
            f"{tenant.name}: holds {tenant.held[0].name} beside its method, for which {format} has no place; export to "
            "peft, or write the merged weights (host.merged)"
        )
    part = options.pop("part", None) if format in PIPELINES else None
    found = changes(base, tenant, format, **options)
    if format in PIPELINES:
        return _file(path, pipelines.write(base, found, format, part), overwrite)
    if format == "gguf":
        return _gguf(base, found, path, overwrite, next(iter(tenant.invocations), ()))
    return _mlx(base, found, path, tenant, overwrite)


def _options(format: str) -> set[str]:
    """What `export` takes for a format."""
    named = signature(export_peft if format == "peft" else changes).parameters.values()
    return {p.name for p in named if p.default is not p.empty} | ({"part"} if format in PIPELINES else set())


def changes(
    base: HookedModel, tenant: Tenant, format: str, rank: int | None = None, tolerance: float | None = None
) -> dict[str, Change]:
    """What a tenant changes, by its sites' names: factors, exact unless `rank` or `tolerance` allow an error.

    Raises: CommonweightError for a method that is no product of two factors, unless an error is allowed; for whatever
    is no change of a linear layer.
    """
    if rank is not None and (not isinstance(rank, int) or rank < 1):
        raise CommonweightError(f"rank is {rank!r}; it must be 1 or more, or None for no limit")
    if tolerance is not None and not tolerance >= 0:
        raise CommonweightError(f"tolerance is {tolerance}; it must be 0 or more")
    bad = [n for n, t in tenant.pools.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise CommonweightError(f"{tenant.name}: pool {bad[0]} holds NaN or infinity; nothing was written")
    following = _following(base, tenant, format)
    if format != "gguf" and rank is tolerance is None and (dora := _dora(base, tenant)):
        return dora
    tenant = activated(tenant, format)
    asked = rank is not None or tolerance is not None
    here = {n: es for n, es in tenant.table.items() if n not in following}
    silent = (n for n, es in here.items() if any(getattr(e.bind, "weight", None) is None for e in es))
    if (name := next(silent, None)) is not None:
        raise CommonweightError(
            f"{name}: {tenant.method.name} does not change a weight there, which is all that {format} can say; "
            "keep the tenant in its own file"
        )
    if not asked and (name := next((n for n, es in here.items() if opaque(es)), None)):
        raise CommonweightError(
            f"{name}: {tenant.method.name} is no product of two factors there, which is all that {format} can say; "
            "give tolerance=0.01 (or rank=) for the nearest one, or keep the tenant in its own file"
        )
    limit = EXACT if tolerance is None else tolerance
    most = limit if tolerance is not None or rank is None else 0.0
    low = low_of(base, tenant, following, rank, most, kinds=("embedding", *(("conv",) if format in PIPELINES else ())))
    low = as_kept(base, tenant, low) if format in PIPELINES else low
    mixed = factors(base, tenant, rank, most, format)
    if tolerance is not None or rank is None:
        low_rank.within({**low, **{n: v.first for n, v in mixed.items()}}, rank, limit)
    found = {n: Change(v.A, v.B, bias=v.bias) for n, v in low.items()}
    for name, v in mixed.items():
        found |= projections(name, v, format, about(base).model_type)
    return found


def _following(base: HookedModel, tenant: Tenant, format: str) -> set[str]:
    """Heads that change as the table does to which they are tied; mlx-lm has one module for both.

    Raises: CommonweightError for a head or a table that changes alone where the model has one weight for both, and
    where llama.cpp reads the factors of the one for the other.
    """
    tied = {
        n: others for n, others in base.ties.items() if n in tenant.table or any(o in tenant.table for o, _ in others)
    }
    for table, others in tied.items():
        if format == "gguf" and table in tenant.table:
            raise CommonweightError(
                f"{table}: the head is tied to this table, and llama.cpp stops where it would read the table's factors "
                "for the head; export to peft, or make the tenant without this site"
            )
        own = {u.site for u in tenant.plan.uses}
        alone = table not in own or tenant.apart or any(not across or n in own for n, across in others)
        if format == "mlx" and alone:
            raise CommonweightError(
                f"{table}: {', '.join(n for n, _ in others)} read the same weight, which mlx-lm has once, and the "
                "tenant does not change them as one; export to peft"
            )
    return {n for others in tied.values() for n, _ in others} if format == "mlx" else set()


def activated(tenant: Tenant, format: str) -> Tenant:
    """A tenant that acts from some tokens on, as what it does from there on; any other as it is.

    Raises: CommonweightError where a format has no word for these tokens."""
    if not tenant.invocations:
        return tenant
    if format != "gguf":
        raise CommonweightError(
            f"{tenant.name}: an activated LoRA (invocation), for which {format} has no word; export to peft or gguf"
        )
    acting = copy.copy(tenant)
    acting.table = {n: [Entry(_low(e.bind), e.reads, e.rows) for e in es] for n, es in tenant.table.items()}
    return acting


def _low(bind: Any) -> Any:
    return bind.low if isinstance(bind, Activated) else bind


def _dora(base: HookedModel, tenant: Tenant) -> dict[str, Change] | None:
    """A tenant of DoRA as it is; None for any other."""
    out = {}
    for name, entries in tenant.table.items():
        if (
            len(entries) != 1
            or base.modules[name].kind != "linear"
            or not isinstance(entries[0].bind, Magnitude)
            or entries[0].rows is not None
        ):
            return None
        slots = {k: v.detach().cpu() for k, v in entries[0].slots(None).items()}
        out[name] = Change(slots["A"], slots["B"], entries[0].bind.scale, slots["m"])
    return out


def _gguf(
    base: HookedModel, found: dict[str, Change], path: Path, overwrite: bool, invocation: tuple[int, ...]
) -> Path:
    prefix = within(base)
    return _file(path, gguf.write({short(n, prefix): c for n, c in found.items()}, about(base), invocation), overwrite)


def _file(path: Path, data: bytes, overwrite: bool) -> Path:
    if path.exists() and (path.is_dir() or not overwrite):
        raise CommonweightError(f"{path} is there already; choose another file, or give overwrite=True")
    return atomic.write(path, data)


def _mlx(base: HookedModel, found: dict[str, Change], path: Path, tenant: Tenant, overwrite: bool) -> Path:
    linear = {n: at for n in found if (at := base.modules.get(n)) is not None and at.kind == "linear"}
    if turned := next((n for n, at in linear.items() if at.transposed), None):
        raise CommonweightError(
            f"{turned}: a transposed layer (GPT-2's Conv1D), whose names and halves mlx-lm has in another way; export "
            "to peft or gguf"
        )
    layers = len(blocks(base.model))
    dropout = min(getattr(u.bind, "dropout", 0.0) for u in tenant.plan.uses)
    prefix = within(base)
    whole = {short(n, prefix): c for n, c in found.items()}
    folder = atomic.folder_for(path, [mlx.CONFIG], "adapter folder", overwrite=overwrite)
    kind = about(base).model_type
    if kind in mlx.ALIKE and not any(at.kind == "expert" for at in base.modules.values()):
        kind = ""  # Llama 4 without experts is a model of its own there, with the same names
    files = mlx.write(whole, layers, dropout, kind)
    atomic.make_folder(folder.parent)
    atomic.write_folder(folder, files, replace=True)
    return path
