"""Tenants as adapters of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...bind import Magnitude
from ...core import CommonweightError, counted, unknown
from ...formats import atomic, gguf, mlx
from ...formats.changes import EXACT, Change
from ...formats.peft import low_rank, short
from ..hooked import HookedModel
from ..peft import export_peft
from ..peft.changes import opaque
from ..peft.names import within
from ..peft.writing import low_of
from ..sites import blocks
from ..tenant import Tenant
from .about import about

FORMATS = "peft", "gguf", "mlx"


def export(
    base: HookedModel, tenant: Tenant, path: Path, format: str, *, overwrite: bool = False, **options: Any
) -> Path:
    """See `Host.export`."""
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
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
    found = changes(base, tenant, format, **options)
    if format == "gguf":
        return _gguf(base, found, path, overwrite)
    return _mlx(base, found, path, tenant, overwrite)


def changes(
    base: HookedModel, tenant: Tenant, format: str, rank: int | None = None, tolerance: float | None = None
) -> dict[str, Change]:
    """What a tenant changes, by its sites' names: factors, exact unless `rank` or `tolerance` allow an error.

    Raises: CommonweightError for a method that is no product of two factors, unless an error is allowed; for whatever
    is no change of a linear layer.
    """
    if rank is not None and rank < 1:
        raise CommonweightError(f"rank is {rank}; it must be 1 or more, or None for no limit")
    if tolerance is not None and not tolerance >= 0:
        raise CommonweightError(f"tolerance is {tolerance}; it must be 0 or more")
    bad = [n for n, t in tenant.pools.items() if t.is_floating_point() and not t.isfinite().all()]
    if bad:
        raise CommonweightError(f"{tenant.name}: pool {bad[0]} holds NaN or infinity; nothing was written")
    if table := next((n for n in tenant.table if base.modules[n].kind == "embedding"), None):
        raise CommonweightError(
            f"{table}: the tenant changes this table of embeddings, which is not written to {format}; export to peft, "
            "or make the tenant without this site"
        )
    if format == "mlx" and rank is tolerance is None and (dora := _dora(tenant)):
        return dora
    asked = rank is not None or tolerance is not None
    if not asked and (name := next((n for n, es in tenant.table.items() if opaque(es)), None)):
        raise CommonweightError(
            f"{name}: {tenant.method.name} is no product of two factors there, which is all that {format} can say; "
            "give tolerance=0.01 (or rank=) for the nearest one, or keep the tenant in its own file"
        )
    limit = EXACT if tolerance is None else tolerance
    low = low_of(base, tenant, set(), rank, limit if tolerance is not None or rank is None else 0.0)
    if tolerance is not None or rank is None:
        low_rank.within(low, rank, limit)
    return {n: Change(v.A, v.B, bias=v.bias) for n, v in low.items()}


def _dora(tenant: Tenant) -> dict[str, Change] | None:
    """A tenant of DoRA as it is; None for any other."""
    out = {}
    for name, entries in tenant.table.items():
        if len(entries) != 1 or not isinstance(entries[0].bind, Magnitude) or entries[0].rows is not None:
            return None
        slots = {k: v.detach().cpu() for k, v in entries[0].slots(None).items()}
        out[name] = Change(slots["A"], slots["B"], entries[0].bind.scale, slots["m"])
    return out


def _gguf(base: HookedModel, found: dict[str, Change], path: Path, overwrite: bool) -> Path:
    prefix = within(base)
    data = gguf.write({short(n, prefix): c for n, c in found.items()}, about(base))
    if path.exists() and (path.is_dir() or not overwrite):
        raise CommonweightError(f"{path} is there already; choose another file, or give overwrite=True")
    return atomic.write(path, data)


def _mlx(base: HookedModel, found: dict[str, Change], path: Path, tenant: Tenant, overwrite: bool) -> Path:
    if turned := next((n for n in found if base.modules[n].transposed), None):
        raise CommonweightError(
            f"{turned}: a transposed layer (GPT-2's Conv1D), whose names and halves mlx-lm has in another way; export "
            "to peft or gguf"
        )
    layers = len(blocks(base.model))
    dropout = min(getattr(u.bind, "dropout", 0.0) for u in tenant.plan.uses)
    prefix = within(base)
    whole = {short(n, prefix): c for n, c in found.items()}
    folder = atomic.folder_for(path, [mlx.CONFIG], "adapter folder", overwrite=overwrite)
    files = mlx.write(whole, layers, dropout)
    atomic.make_folder(folder.parent)
    atomic.write_folder(folder, files, replace=True)
    return path
