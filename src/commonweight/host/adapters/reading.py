"""One door for adapters of any tool."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ...core import CommonweightError, unknown
from ...formats import changes as ways
from ...formats import mlx
from ...formats.adapter import Adapter
from ...formats.changes import Change
from ...formats.peft.keys import PREFIX
from ...formats.recognise import FORMATS, recognise
from .. import files
from ..hooked import HookedModel
from ..peft import import_peft, names
from ..peft.base import Frozen
from ..peft.entering import enter
from ..roster import Roster
from ..tenant import Tenant


def load_adapter(
    roster: Roster, path: Path, name: str | None, format: str | None, labels: Sequence[str] | None, check_base: bool
) -> Tenant:
    """See `Host.load_adapter`."""
    if format is not None and format not in FORMATS:
        raise unknown("format", format, FORMATS)
    kind, at = (format, path) if format is not None else recognise(path)
    name = title(path) if name is None else name
    roster.free(name)
    if kind == "peft":
        return import_peft(roster, name, at, labels)
    if labels is not None:
        raise CommonweightError(
            f"{path}: labels are of a head in a PEFT folder; this is {FORMATS[kind]}, without heads"
        )
    if kind == "commonweight":
        return files.load(roster, name, at, check_base)
    roster.base.follow(roster.tenants.values())
    try:
        return enter(roster, name, READERS[kind](roster.base, at))
    except CommonweightError as e:
        where = "" if str(e).startswith(str(at)) else f"{at}: "
        raise CommonweightError(f"{where}{e}") from e


def title(path: Path) -> str:
    """What a tenant is called without a name: as its file or folder, with what no name may hold replaced."""
    whole = path.resolve()
    stem = whole.name if path.is_dir() else whole.stem
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem)[:100].strip(".-") or "adapter"


def _mlx(base: HookedModel, folder: Path) -> Adapter:
    found, dropout = mlx.read(folder if folder.is_dir() else folder.parent)
    return placed(base, found, dropout)


READERS: Mapping[str, Callable[[HookedModel, Path], Adapter]] = {"mlx": _mlx}


def placed(base: HookedModel, found: Mapping[str, Change], dropout: float = 0.0) -> Adapter:
    """The adapter that these changes are on this base. found: by names of modules, with or without a model's head."""
    view = names.view_of(base, dict.fromkeys(f"{PREFIX}{n}.weight" for n in found))  # type: ignore[arg-type]
    at = ways.place(found, names.sites(base, view))
    return ways.adapter(at, {s.name: s for s in base.every}, Frozen(base), dropout)
