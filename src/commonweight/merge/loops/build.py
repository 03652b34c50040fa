"""Machine code of the loops, for the processor that it is made on: `python build.py FOLDER`.

A process of its own, started by its path: it takes numba and NumPy, and nothing of the library or of torch, and what
they need of memory is given back.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import llvmlite.binding as llvm
from kernel import LOOPS  # type: ignore[import-not-found]
from numba import cfunc, types

_KNOWN = re.compile(r"llvm\.|memcpy$|memset$|memmove$|fmaf$")  # what is there in every process


def machine_code(name: str, loop: Callable) -> bytes:
    """An object file with the function `name` in it: int64 (int64 *)."""
    made = cfunc(types.int64(types.CPointer(types.int64)), error_model="numpy", forceinline=True)(loop)
    text = made.inspect_llvm().replace(made.native_name, name)
    module = llvm.parse_assembly(text)
    missing = [f.name for f in module.functions if f.is_declaration and not _KNOWN.match(f.name)]
    if missing:
        raise RuntimeError(f"{name} calls {', '.join(missing)}, which is not there without numba")
    target = llvm.Target.from_triple(llvm.get_process_triple()).create_target_machine(
        cpu=llvm.get_host_cpu_name(), features=llvm.get_host_cpu_features().flatten(), opt=3, codemodel="jitdefault"
    )
    return target.emit_object(module)


def main(folder: Path, loops: Mapping[str, Callable]) -> None:
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    for name, loop in loops.items():
        (folder / name).write_bytes(machine_code(name, loop))


if __name__ == "__main__":
    main(Path(sys.argv[1]), LOOPS)
