"""The threads that torch's operations run on, where they are libgomp's: a team for each thread that asks for one.

While a process has more of them than processors, libgomp's threads wait for their next operation a hundred turns and
sleep then, in place of 300,000; a step has some hundred operations, and each wakes them. One product in one other
thread is enough for that, since its team stays, so a thread that has computed lets its team go before it waits.
libgomp counts them in `gomp_managed_threads` (config/linux/wait.h, env.c).
"""

from __future__ import annotations

import ctypes
import threading
from functools import cache
from pathlib import Path

import torch

_HARD = 2  # omp_pause_resource's kinds: 1 soft, 2 hard
_ONE = threading.Lock()  # a thread that began meanwhile would take the other's one for what was before


def rest() -> None:
    """This thread's team ends; the next operation that wants one makes it anew, in some 50 microseconds. Other threads'
    teams are not touched. Nothing happens where torch has another runtime than libgomp."""
    for library in _libraries():
        library.omp_pause_resource_all(_HARD)


def alone() -> None:
    """From now on this thread's operations run on itself, for what is done beside an engine. Others keep theirs."""
    with _ONE:
        before = torch.get_num_threads()
        torch.set_num_threads(1)
        if before != 1:  # what one thread sets is also the default of threads to come: another one sets it back
            other = threading.Thread(target=torch.set_num_threads, args=(before,))
            other.start()
            other.join()


@cache
def _libraries() -> list[ctypes.CDLL]:
    """Each libgomp that this process has loaded."""
    try:
        maps = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    paths = dict.fromkeys(p for line in maps if "libgomp" in Path(p := line.split(maxsplit=5)[-1]).name)
    found = [ctypes.CDLL(p) for p in paths if Path(p).is_file()]
    return [library for library in found if hasattr(library, "omp_pause_resource_all")]
