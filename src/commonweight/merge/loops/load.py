"""The loops as functions of this process: made once for a machine by `build`, kept in a folder, and taken in from there
by llvmlite alone, which takes a twentieth of a second and 6 MB where numba would take one second and 45 MB."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import sys
import tempfile
import warnings
from array import array
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib import metadata
from pathlib import Path
from typing import Any

Loop = Callable[["array[int]"], int]  # takes its whole numbers, as calls.whole makes them
SWITCH = "COMMONWEIGHT_LOOPS"  # an environment variable: "off", or "on" for merges of any size
# those of kernel, which is not imported
NAMES = ["merge", "count", "square", "size", "rank", "score", "compete", "runs", "choose"]
LEAST, WORTH = 1 << 22, 1 << 26  # numbers to be read: fewer gain nothing, or less than it takes to make the loops
_HERE = Path(__file__).parent
_MARK = 16  # bytes of a digest before what is kept
_kept: list[Any] = []  # what machine code lives in


def loops(numbers: int) -> Mapping[str, Loop] | None:
    """The loops, or None where numba is missing or a merge that reads so many numbers is too small for them."""
    asked = os.environ.get(SWITCH, "")
    if asked == "off" or (asked != "on" and numbers < LEAST):
        return None
    return _loops(asked == "on" or numbers >= WORTH)


@lru_cache
def _loops(make: bool) -> Mapping[str, Loop] | None:
    try:
        import llvmlite.binding as llvm

        key = _key(llvm)
    except ImportError:
        return None
    folder = _folder()
    found = _read(folder, key)
    if found is None and make:
        found = _make(folder, key)
    return None if found is None else {n: _function(llvm, n, code) for n, code in found.items()}


def _folder() -> Path:
    """Where numba keeps its own if it was told, else the user's cache."""
    if told := os.environ.get("NUMBA_CACHE_DIR"):
        return Path(told) / "commonweight"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "commonweight" / "loops"


def _key(llvm: Any) -> str:
    """Of all that decides the machine code."""
    h = hashlib.blake2b(digest_size=12)
    for path in [_HERE / "build.py", *sorted((_HERE / "kernel").glob("*.py"))]:
        h.update(path.read_bytes())
    said = [metadata.version("numba"), metadata.version("llvmlite"), llvm.get_process_triple()]
    h.update(" ".join([*said, llvm.get_host_cpu_name(), llvm.get_host_cpu_features().flatten()]).encode())
    return h.hexdigest()


def _read(folder: Path, key: str) -> dict[str, bytes] | None:
    out = {}
    for name in NAMES:
        try:
            data = (folder / f"{name}-{key}").read_bytes()
        except OSError:
            return None
        if hashlib.blake2b(data[_MARK:], digest_size=_MARK).digest() != data[:_MARK]:
            return None
        out[name] = data[_MARK:]
    return out


def _make(folder: Path, key: str) -> dict[str, bytes] | None:
    """Makes them, and keeps them if that can be done: each file appears whole, whoever else makes it too."""
    with tempfile.TemporaryDirectory() as work:
        done = subprocess.run([sys.executable, str(_HERE / "build.py"), work], capture_output=True, text=True)
        if done.returncode:
            said = (done.stderr.strip().splitlines() or ["no word"])[-1]
            warnings.warn(f"merging goes on without compiled loops, which could not be made: {said}", stacklevel=2)
            return None
        out = {name: (Path(work) / name).read_bytes() for name in NAMES}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, code in out.items():
            with tempfile.NamedTemporaryFile(dir=folder, delete=False) as f:
                f.write(hashlib.blake2b(code, digest_size=_MARK).digest() + code)
            os.replace(f.name, folder / f"{name}-{key}")
    except OSError:
        pass
    return out


def _function(llvm: Any, name: str, code: bytes) -> Loop:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    target = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(codemodel="jitdefault")
    engine = llvm.create_mcjit_compiler(llvm.parse_assembly(""), target)
    engine.add_object_file(llvm.ObjectFileRef.from_data(code))
    engine.finalize_object()
    _kept.append(engine)
    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)(engine.get_function_address(name))
    return lambda head: call(head.buffer_info()[0])  # which keeps `head` as long
