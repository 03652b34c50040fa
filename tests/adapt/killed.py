"""Runs one training again and again, killing it at different moments, and prints what each ends with.

    python -m tests.adapt.killed FOLDER MODEL [every]

One process imports everything once and forks a child for each run, so that a moment costs seconds.
"""

from __future__ import annotations

import gc
import hashlib
import json
import os
import pathlib
import signal
import sys
import time
from pathlib import Path

from commonweight.adapt import checkpoint, run
from commonweight.formats import atomic

MOMENTS = (
    "step 1",  # before the first checkpoint
    "step 9",  # between checkpoints, in the middle of an epoch
    "step 10",  # in the callback after a step, before its checkpoint
    "after checkpoint 2",  # at an epoch's end, when the next one begins
    "writing checkpoint 1",  # its tensors half written
    "writing checkpoint 3",
    "between the files of checkpoint 2",  # tensors there, the trainer's state not
    "before checkpoint 3 has its name",
    "dropping an old checkpoint",
    "before the tenant's file has its name",
    "between the tenant and its report",
    "before the checkpoint is removed",
    "while the checkpoint is removed",
)


def die(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(owner: object, name: str, n: int, before: bool = True, when=lambda *a: True) -> None:
    """Kills this process at the n-th fitting call of a function."""
    old, calls = getattr(owner, name), [0]

    def wrapper(*args, **kwargs):
        calls[0] += bool(when(*args))
        if calls[0] >= n and before:
            die()
        out = old(*args, **kwargs)
        if calls[0] >= n:
            die()
        return out

    setattr(owner, name, wrapper)


def half(path: Path, data: bytes) -> None:
    (path.parent / f".{path.name}.xyz").write_bytes(data[: len(data) // 2])
    die()


def arrange(moment: str) -> None:
    """Makes the process die at this moment."""
    number = int(next((w for w in moment.split() if w.isdecimal()), 0))
    if moment.startswith("after checkpoint"):
        counted(checkpoint.Store, "write", number, before=False)
    elif moment.startswith("writing checkpoint"):
        old, calls = atomic.write, [0]

        def write(path, data):
            calls[0] += 1
            return half(path, data) if calls[0] >= number else old(path, data)

        atomic.write = write
    elif moment.startswith("between the files"):
        from transformers import TrainerState

        counted(TrainerState, "save_to_json", number)
    elif moment.startswith("before checkpoint"):
        counted(os, "replace", number, when=lambda a, b: str(b).split("/")[-1].startswith("step-"))
    elif moment == "dropping an old checkpoint":
        counted(os, "replace", 1, before=False, when=lambda a, b: "old-" in str(b))
    elif moment == "before the tenant's file has its name":
        counted(os, "replace", 1, when=lambda a, b: str(b).endswith("legal.safetensors"))
    elif moment == "between the tenant and its report":
        counted(os, "replace", 1, when=lambda a, b: str(b).endswith("legal.json"))
    elif moment == "before the checkpoint is removed":
        counted(checkpoint.Store, "clear", 1)
    elif moment == "while the checkpoint is removed":
        counted(pathlib.Path, "rmdir", 1, when=lambda p: str(p).endswith("legal.checkpoint"))


def train(folder: Path, model: str, resume: bool, moment: str = "") -> None:
    if moment:
        arrange(moment)
    stop = int(moment.split()[1]) if moment.startswith("step") else 0
    run(
        model, str(folder.parent / "rows.jsonl"), folder / "legal.safetensors", method="lora",
        options={"rank": 2, "dropout": 0.2}, dev="0.2", eval_file=str(folder.parent / "rows.jsonl"), dtype="float32",
        epochs=3, batch_size=8, checkpoint_every=4, base_dropout=True, resume=resume, say=lambda _: None,
        progress=lambda p: die() if p.step == stop else None,
    )  # fmt: skip


def child(*args, after: float | None = None) -> int:
    """The signal that ended it, or 0. after: seconds after which it is killed from outside."""
    pid = os.fork()
    if pid == 0:
        try:
            train(*args)
        except BaseException as e:
            print(repr(e), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    if after is not None:
        time.sleep(after)
        os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def main(root: Path, model: str, every: bool) -> dict[str, list]:
    gc.freeze()  # accelerate looks for garbage in every run: not in what was imported
    out, whole = {}, 0.0
    started = time.time()
    for moment in ("", *(MOMENTS if every else MOMENTS[::2]), *((0.3, 0.6, 0.9) if every else (0.6,))):
        folder = root / str(moment or "undisturbed").replace(" ", "-").replace("'", "")
        folder.mkdir()
        if isinstance(moment, float):
            first = child(folder, model, False, after=moment * whole)
            second = child(folder, model, True)
        elif moment:
            first, second = child(folder, model, False, moment), child(folder, model, True)
        else:
            first = second = child(folder, model, False)
            whole = time.time() - started
        digest = hashlib.sha256((folder / "legal.safetensors").read_bytes()).hexdigest()
        out[str(moment)] = [first, second, digest, sorted(p.name for p in folder.iterdir())]
    return out


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:] == ["every"])))
