"""`commonweight serve` in a process of its own, on a free port, from its start to its end."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from commonweight import Commons, CommonweightError


def shop(files: Path, at: Path) -> list[str]:
    """A store of the tenants whose files lie in a folder; their names."""
    paths = sorted(files.glob("*.safetensors"))
    Commons(at).publish_files(paths)
    return [p.stem for p in paths]


@contextmanager
def serving(model: Path, store: Path, name: str, log: Path) -> Iterator[str]:
    """The address of a server of a model and a store. Its log is a file. Raises: CommonweightError, with what it says,
    where it does not come up."""
    command = [
        sys.executable, "-W", "ignore", "-m", "commonweight", "serve", str(model), "--store", str(store), "--port",
        "0", "--name", name, "--dtype", "float32",
    ]  # fmt: skip
    with log.open("wb") as to:
        process = subprocess.Popen(command, stdout=to, stderr=to)
    try:
        while not (found := re.search(r"answers at (http://\S+)/v1", log.read_text("utf-8", "replace"))):
            try:
                process.wait(0.2)
            except subprocess.TimeoutExpired:
                continue
            last = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            raise CommonweightError(f"the server did not come up: {' '.join(last)}; see {log}")
        yield found[1]
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)
