"""Simulates a run: undisturbed, killed at several moments, and resumed; prints what each ended with.

python -m tests.exchange.killed FOLDER MODEL
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
from pathlib import Path

from commonweight.adapt import open_host
from commonweight.exchange import checkpoint, simulate
from tests.adapt import tiny


def train(folder: Path, model: str, resume: bool, kill: int) -> None:
    """kill: the number of the write to disk before which the process ends; 0: never."""
    write, count = checkpoint.atomic.write, [0]

    def counted(path, data):
        count[0] += 1
        if count[0] == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, data)

    checkpoint.atomic.write = counted  # type: ignore[assignment]
    run = simulate(
        open_host(model, dtype="float32"), tiny.rows(30), method="fedavg", options={"rank": 2, "dropout": 0.1},
        private="*head*", clients=4, sample=3, rounds=4, batch_size=4, lr=1e-2, eval_rows=tiny.rows(10, 4), out=folder,
        resume=resume,
    )  # fmt: skip
    digest = hashlib.sha256()
    for tensors in (run.state.tensors, *(run.kept.of(c) for c in range(4))):
        for name in sorted(tensors):
            digest.update(name.encode() + tensors[name].numpy().tobytes())
    (folder / "digest").write_text(digest.hexdigest() + json.dumps(run.curve) + json.dumps(run.seats))


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
    found = folder / "digest"
    return {
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status),
        "digest": hashlib.sha256(found.read_bytes()).hexdigest() if found.is_file() else None,
        "clients": sorted(p.name.split(".")[0] for p in (folder / "state" / "clients").glob("*")),
    }


if __name__ == "__main__":
    root, model = Path(sys.argv[1]), sys.argv[2]
    out = [child(root / "whole", model, False, 0)]
    for kill in (2, 8, 11):
        out += [child(root / f"at-{kill}", model, resume, 0 if resume else kill) for resume in (False, True)]
    print(json.dumps(out))
