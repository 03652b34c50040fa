"""Trains two tenants together: undisturbed, killed in the middle, and resumed; prints what each run ended with.

python -m tests.adapt.killed_together FOLDER MODEL
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

from commonweight.adapt import Data, adapt_together, open_host
from tests.adapt import tiny


def train(folder: Path, model: str, resume: bool, kill: int) -> None:
    host = open_host(model, dtype="float32")
    tenants = {n: Data(rows=tiny.rows(40, s), dev=tiny.rows(16, s + 2)) for n, s in (("a", 0), ("b", 1))}
    adapt_together(
        host, tenants, method="lotr", options={"rank": 2, "dropout": 0.2}, common="tasks", epochs=2, batch_size=8,
        checkpoint=folder / "c", checkpoint_every=4, resume=resume, base_dropout=True,
        progress=lambda p: os.kill(os.getpid(), signal.SIGKILL) if p.step == kill else None,
    )  # fmt: skip
    for name in host:
        host.save(name, folder / f"{name}.safetensors")


def child(folder: Path, *args) -> dict:
    folder.mkdir(exist_ok=True)
    pid = os.fork()
    if pid == 0:
        try:
            train(folder, *args)
        except BaseException as e:
            print(repr(e), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    files = sorted(folder.glob("*.safetensors"))
    return {
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status),
        "left": sorted(p.name for p in folder.iterdir()),
        "digest": hashlib.sha256(b"".join(p.read_bytes() for p in files)).hexdigest(),
    }


if __name__ == "__main__":
    root, model = Path(sys.argv[1]), sys.argv[2]
    runs = [(root / "whole", False, 0), (root / "killed", False, 14), (root / "killed", True, 0)]
    print(json.dumps([child(folder, model, *how) for folder, *how in runs]))
