"""One door for adapters of any tool."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from os import PathLike
from pathlib import Path
from typing import NamedTuple

from ...core import CommonweightError, unknown
from ...formats import changes as ways
from ...formats import gguf, kohya, mlx, torchtune
from ...formats.adapter import Adapter
from ...formats.changes import Change
from ...formats.peft.keys import PREFIX, bare
from ...formats.recognise import FORMATS, recognise
from .. import files
from ..hooked import HookedModel
from ..names import named
from ..peft import import_peft, names
from ..peft.base import Frozen
from ..peft.entering import enter
from ..roster import Roster
from ..tenant import Tenant
from .about import about
from .mixtures import settled

LAYERS = "linear", "expert", "router", "embedding"


class How(NamedTuple):
    """The options of `Host.load_adapter`."""

    format: str | None = None
    labels: tuple[str, ...] | None = None
    tolerance: float | None = None
    task: int | None = None
    part: str | None = None
    alpha: float | None = None
    start: str | PathLike[str] | None = None
    check_base: bool = True


def load_adapter(roster: Roster, path: Path, name: str | None, how: How) -> Tenant:
    """See `Host.load_adapter`."""
    if how.format is not None and how.format not in FORMATS:
        raise unknown("format", how.format, FORMATS)
    kind, at = (how.format, path) if how.format is not None else recognise(path)
    name = title(path) if name is None else name
    roster.free(name)
    if how.part is not None and kind != "kohya":
        raise CommonweightError(f"{path}: part is for files of several models; this is {FORMATS[kind]}; leave it out")
    if how.alpha is not None and kind != "torchtune":
        raise CommonweightError(f"{path}: alpha is for checkpoints of torchtune; this is {FORMATS[kind]}; leave it out")
    if kind == "peft":
        return import_peft(roster, name, at, how.labels, tolerance=how.tolerance, task=how.task, start=how.start)
    for option, given in (("labels", how.labels), ("task", how.task), ("start", how.start)):
        if given is not None:
            raise CommonweightError(f"{path}: {option} is for folders of PEFT; this is {FORMATS[kind]}; leave it out")
    if kind == "commonweight":
        return files.load(roster, name, at, how.check_base)
    roster.base.follow([*roster.tenants.values()])
    try:
        return enter(roster, name, READERS[kind](roster.base, at, how))
    except CommonweightError as e:
        where = "" if str(e).startswith(str(at)) else f"{at}: "
        raise CommonweightError(f"{where}{e}") from e


def title(path: Path) -> str:
    """What a tenant is called without a name: as its file or folder, with what no name may hold replaced."""
    whole = path.resolve()
    stem = whole.name if path.is_dir() else whole.stem
    return re.sub(r"[^A-Za-z0-9._-]", "-", stem)[:100].strip(".-") or "adapter"


def _mlx(base: HookedModel, folder: Path, how: How) -> Adapter:
    told = about(base).model_type
    found, dropout = mlx.read(folder if folder.is_dir() else folder.parent, told)
    inner = any(bare(s.name).startswith("model.language_model.") for s in base.every)
    home = "model.language_model." if inner else "model."
    return placed(base, {mlx.back_in(n, home): c for n, c in found.items()}, how, dropout, told)


def _gguf(base: HookedModel, path: Path, how: How) -> Adapter:
    mine = [bare(s.name) for s in base.every if s.kind in LAYERS and s.rows is None]
    found, invocation = gguf.read(path, about(base), mine)
    adapter = placed(base, found, how, apart=about(base).model_type)
    return adapter._replace(options={**adapter.options, "invocation": invocation}) if invocation else adapter


def _kohya(base: HookedModel, path: Path, how: How) -> Adapter:
    sites = {bare(s.name): s for s in base.every if s.kind in (*LAYERS, "norm", "conv") and s.rows is None}
    modules = [bare(n) for n, m in named(base.model, once=False) if m._parameters.get("weight") is not None]
    layers = getattr(getattr(base.inner, "config", None), "layers_per_block", 2)
    naming = kohya.Naming(
        {n: (s.out, s.inp) for n, s in sites.items()}, modules, layers if isinstance(layers, int) else 2
    )
    frozen = Frozen(base)
    found = kohya.read(path, naming, lambda n: frozen.weight(sites[n].name).cpu(), how.part)
    at = ways.place(found, sites)
    return ways.adapter(at, {s.name: s for s in base.every}, frozen, how.tolerance)


def _torchtune(base: HookedModel, path: Path, how: How) -> Adapter:
    told = about(base)
    return placed(base, torchtune.read(path, told.model_type, told.heads, told.key_heads, how.alpha), how)


Reader = Callable[[HookedModel, Path, How], Adapter]
READERS: Mapping[str, Reader] = {"gguf": _gguf, "kohya": _kohya, "mlx": _mlx, "torchtune": _torchtune}


def placed(
    base: HookedModel, found: Mapping[str, Change], how: How, dropout: float = 0.0, apart: str = ""
) -> Adapter:  # fmt: skip
    """The adapter that these changes are on this base. found: by names of modules, with or without a model's head.
    apart: the model type of one whose file has gate and up of experts apart."""
    view = names.view_of(base, dict.fromkeys(f"{PREFIX}{n}.weight" for n in found))  # type: ignore[arg-type]
    at = settled(ways.place(found, names.sites(base, view)), apart)
    return ways.adapter(at, {s.name: s for s in base.every}, Frozen(base), how.tolerance, dropout)
