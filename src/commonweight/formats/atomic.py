"""Files appear whole or not at all: temporary name in the same folder, fsync, rename."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path

from ..core import CommonweightError


def write(path: Path, data: bytes) -> Path:
    """Writes `data` to `path` in one step that a crash cannot halve; a folder that is not there is made.

    Cost: one fsync of the file, one of the folder."""
    folder = path.parent
    if path.is_dir():
        raise CommonweightError(f"{path} is a folder; wanted the name of a file")
    make_folder(folder)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=folder)
    except OSError as e:
        raise CommonweightError(f"{path}: cannot write in {folder}: {e.strerror}") from e
    try:
        with os.fdopen(handle, "wb") as f:
            f.write(data)
            f.flush()
            os.fsync(f.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except BaseException as e:
        os.unlink(temporary)
        if isinstance(e, OSError):
            raise CommonweightError(f"{path}: {e.strerror}; nothing was written") from e
        raise
    sync(folder)
    return path


def write_new(path: Path, data: bytes, *, overwrite: bool = False) -> Path:
    """As `write`, but no file is replaced that holds something else, unless `overwrite`; one that holds the same stays.

    Raises: as `write`; and where another file is there already. Cost: reads a file that is there, if it is as long.
    """
    if overwrite or not path.is_file():
        return write(path, data)
    if path.stat().st_size != len(data) or path.read_bytes() != data:
        raise taken(path)
    return path


def write_folder(path: Path, files: Mapping[str, bytes], *, replace: bool = False) -> Path:
    """Writes a folder with files in it, all of them in one step. replace: in place of a folder that is there.

    Raises: as `write`; and when it is there, unless `replace`.
    """
    try:
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    except OSError as e:
        raise CommonweightError(f"{path}: cannot write in {path.parent}: {e.strerror}") from e
    try:
        for name, data in files.items():
            with open(temporary / name, "wb") as f:
                f.write(data)
                f.flush()
                os.fsync(f.fileno())
        sync(temporary)
        os.chmod(temporary, 0o755)
        if replace:
            replace_folder(temporary, path)
        else:
            os.rename(temporary, path)
    except BaseException as e:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(e, OSError):
            raise CommonweightError(f"{path}: {e.strerror}; nothing was written") from e
        raise
    sync(path.parent)
    return path


def replace_folder(made: Path, path: Path) -> None:
    """Renames the folder `made`, all of whose files are on the disk, to `path`, where another folder may be.

    One that is not empty cannot be replaced in one step: it is moved aside, to `made` with .old behind its name, and
    removed when the new one is there. A kill between the two renames leaves both, whole. Raises: OSError.
    """
    aside = made.with_name(f"{made.name}.old")
    if path.is_dir():
        shutil.rmtree(aside, ignore_errors=True)  # of a run that was killed
        os.rename(path, aside)
    try:
        os.rename(made, path)
    except BaseException:
        if aside.is_dir() and not path.exists():
            os.rename(aside, path)
        raise
    sync(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def folder_for(folder: Path, marks: Collection[str], what: str, *, overwrite: bool = False) -> Path:
    """The real path of a folder that is to be written whole, looked at before. marks: files of which one is in every
    such folder; what: how errors call it, as in an adapter folder.

    Raises: CommonweightError where a file is, or a folder that is not empty, unless `overwrite`; and even then one that
    holds something else.
    """
    real = Path(os.path.realpath(folder))
    if real.exists() and not real.is_dir():
        raise CommonweightError(f"{folder} is a file; wanted the name of a folder")
    if real.is_dir() and any(real.iterdir()):
        if not overwrite:
            raise CommonweightError(f"{folder} is not empty; choose another folder, or give overwrite=True")
        if not any((real / m).is_file() for m in marks):
            raise CommonweightError(f"{folder}: not empty and no {what}; it is not replaced, choose another")
    return real


def taken(path: Path) -> CommonweightError:
    return CommonweightError(
        f"{path} already exists; choose another name, or replace it with --overwrite (overwrite=True)"
    )


def make_folder(folder: Path) -> None:
    """Makes it, and those above it. Raises: CommonweightError where one of them is a file, or cannot be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise CommonweightError(f"{folder}: this folder cannot be made: {e.strerror}") from e


def free(path: Path, flag: str, *, overwrite: bool = False, what: str = "") -> None:
    """Looks at a place before the work that will be written there. flag: what errors call it, as in ``--out``.

    Raises: CommonweightError where something is there already and is not to be overwritten, and where no file can be
    made: a part of its path is a file, or a folder that is not writable.
    """
    if path.exists() and not overwrite:
        raise CommonweightError(f"{flag} {path}: {what or 'a file'} already exists; --overwrite replaces it")
    above = path.absolute().parent
    while not above.exists() and above != above.parent:
        above = above.parent
    if not above.is_dir():
        raise CommonweightError(f"{flag} {path}: {above} is a file; wanted a folder")
    if not os.access(above, os.W_OK | os.X_OK):
        raise CommonweightError(f"{flag} {path}: the folder {above} is not writable")


def sync(folder: Path) -> None:
    """Makes a rename in `folder` durable, where the system can."""
    if os.name != "posix":
        return
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
