"""How much memory a run has taken."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def peak(device: torch.device) -> int:
    """Bytes at most: on CUDA of what torch has allocated there, elsewhere of what this process has held in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if STATUS.is_file():  # getrusage would count what the parent held before this process began
        found = [line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM")]
        if found:
            return int(found[0].split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
