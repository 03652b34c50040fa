"""The most memory that a stretch of work held: resident bytes of this process, or bytes on the CUDA device."""

from __future__ import annotations

import ctypes
from pathlib import Path

import torch

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def start() -> None:
    """The peak is counted from here; memory that the allocator only kept is given back first, where that works."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    try:
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        CLEAR.write_text("5")
    except (OSError, AttributeError):
        pass


def high() -> int | None:
    """Bytes at the peak since `start`, the base model included; None where the system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    try:
        line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return None
    return 1024 * int(line.split()[1])
