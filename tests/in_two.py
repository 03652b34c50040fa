"""Two processes of one group, as `torchrun --nproc-per-node 2` starts them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch

LOADED = [
    "commonweight.adapt",
    "commonweight.share",
    "transformers.trainer",
    "torch.distributed.fsdp",
    "peft",
    __name__,
]
wanted = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")


def in_two(work: Callable[..., None], *args: Any) -> None:
    """Runs work(rank, port, *args) in both; fails as either does. A server that has imported everything forks them: it
    is started once in a process of the suite."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    multiprocessing.get_context("forkserver").set_forkserver_preload(LOADED)
    torch.multiprocessing.start_processes(_run, (port, work, args), nprocs=2, start_method="forkserver")  # type: ignore[attr-defined]


def _run(rank: int, port: int, work: Callable[..., None], args: tuple[Any, ...]) -> None:
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    work(rank, port, *args)
