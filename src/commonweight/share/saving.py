"""Writing a shared model so that other people's tools load it."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..builder import remote
from ..core import CommonweightError, unknown
from .folders import albert, peft, unrolled


def _remote(model: Any, folder: Path, final: Path) -> None:
    remote.write(model, folder)


FORMS: dict[str, Callable[[Any, Path, Path], None]] = {
    "peft": peft.write, "remote-code": _remote, "albert": albert.write, "unrolled": unrolled.write,
}  # fmt: skip


def save(model: Any, folder: str | os.PathLike[str], form: str = "remote-code", *, tokenizer: Any = None) -> Path:
    """Writes a shared model into a new folder; every shared tensor once, but for ``unrolled``.

    form: "remote-code", any architecture, loaded with trust_remote_code=True; "peft", two stock folders, the base in
    ``folder/base`` and an adapter with layer_replication in ``folder/adapter`` (llama, mistral and bert layouts);
    "albert", a stock folder (BERT whose layers are looped, norms too); "unrolled", a stock folder as large as the
    original. tokenizer: written beside it; None: the one that lies beside the model that it was made of.
    Whole or not at all. Raises: CommonweightError for a folder that is there, and where the form cannot hold the model.
    """
    out = Path(folder)
    if form not in FORMS:
        raise unknown("form", str(form), FORMS)
    sharing = getattr(getattr(model, "config", None), "sharing", None)
    if sharing is None:
        raise CommonweightError(f"{type(model).__name__} is no shared model; make one with share.share(model, method)")
    room(out)
    made = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        FORMS[form](model, made, out)
        _tokenizer(model, made, tokenizer)
        if out.exists():
            out.rmdir()
        made.chmod(0o755)
        os.replace(made, out)
    except OSError as e:
        raise CommonweightError(f"{out}: it cannot be written: {e.strerror or e}") from e
    finally:
        shutil.rmtree(made, ignore_errors=True)
    return out


def room(out: Path) -> None:
    """Raises: CommonweightError where no new folder can be: something is there, or it cannot be written."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CommonweightError(f"{out}: it is there already; choose another folder")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent):
            pass
    except OSError as e:
        raise CommonweightError(f"{out}: it cannot be written: {e.strerror or e}") from e


def tried(model: Any, form: str, beside: Path) -> None:
    """Writes it once, in vain: before hours of healing. Raises: CommonweightError where the form cannot hold it."""
    if form not in FORMS:
        raise unknown("form", str(form), FORMS)
    if form == "remote-code":
        remote.classes(model)
        return
    beside.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{beside.name}.", dir=beside.parent) as made:
        FORMS[form](model, Path(made), beside)


def _tokenizer(model: Any, folder: Path, tokenizer: Any) -> None:
    """Beside every config.json."""
    if tokenizer is None:
        from ..adapt.base import tokenizer_of

        try:
            tokenizer = tokenizer_of(model)
        except CommonweightError:
            return
    for config in folder.rglob("config.json"):
        tokenizer.save_pretrained(config.parent)
