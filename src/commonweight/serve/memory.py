"""What glibc does with memory that a step has freed: it keeps it for the next one."""

from __future__ import annotations

import ctypes
import os
import platform

_TRIM, _PAD, _MMAP = -1, -2, -3  # mallopt's names, malloc.h
_LARGEST = 32 << 20  # bytes; the most that glibc takes from its heap
_KEPT = 512 << 20  # bytes at the end of the heap that stay with the process


def keep() -> bool:
    """From now on this process keeps freed memory, up to half a gigabyte, and takes tensors up to 32 MiB from it.

    A step's tensors of some MiB go back to the system each time otherwise, and come as new pages, which the system has
    to zero. Whether it was done: only with glibc, and not where the environment says something about its malloc.
    """
    if platform.libc_ver()[0] != "glibc" or any(k.startswith(("MALLOC_", "GLIBC_TUNABLES")) for k in os.environ):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return all([mallopt(_MMAP, _LARGEST), mallopt(_TRIM, _KEPT), mallopt(_PAD, _LARGEST // 2)])
