"""Learns a stream: undisturbed, and killed by the system at several moments and resumed; prints what each ended with.

python -m tests.lifelong.killed FOLDER
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from pathlib import Path

from commonweight import Commons
from commonweight.adapt import open_host
from commonweight.formats import atomic
from tests.adapt import tiny
from tests.lifelong import small


def stream(model: Path, shop: Path, kill: int) -> None:
    """kill: the number of the whole file that is not written any more, since the process ends before; 0: none."""
    write, count = atomic.write, [0]

    def counted(path, data):
        count[0] += 1
        if count[0] == kill:
            os.kill(os.getpid(), signal.SIGKILL)
        return write(path, data)

    atomic.write = counted  # type: ignore[assignment]
    host = open_host(model, "classify", dtype="float32")
    small.stream(model, shop, "coso", host=host, resume=True)


def child(*args) -> int:
    """The signal that ended it; 0: none."""
    pid = os.fork()
    if pid == 0:
        try:
            stream(*args)
        except BaseException as e:
            print(repr(e), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else -os.WEXITSTATUS(status)


def ended(shop: Path) -> list:
    held = Commons(shop, make=False)
    pools = {n: {k: r.hash for k, r in held.manifest(n).pools.items()} for n in held}
    return [small.told(shop / "streams" / "stream"), pools, held.verify()]


if __name__ == "__main__":
    gc.freeze()  # accelerate looks for garbage in every run: not in what was imported
    root = Path(sys.argv[1])
    model = tiny.base(root / "model")
    assert child(model, root / "whole", 0) == 0
    signals = []
    while not signals or signals[-1]:  # each child goes on from the death before, and writes a file more
        signals.append(child(model, root / "shop", 7))
    print(json.dumps([signals, ended(root / "whole"), ended(root / "shop")]))
