"""Processes of their own that do not load the libraries again.

A run of pytest has one Python beside it that has imported torch, transformers and the like, and never commonweight. It
forks itself for each process that a test wants: what runs there begins as in a new Python, five seconds earlier. What
libraries read from the environment while they are imported, such as OMP_NUM_THREADS and HF_HUB_OFFLINE, is that of the
one Python, whatever `env` says.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import selectors
import signal
import socket
import subprocess
import sys
import tempfile
import types
import warnings
from collections.abc import Iterator
from pathlib import Path

LIBRARIES = (
    "torch", "torch.distributed.fsdp", "transformers.generation", "peft", "datasets", "transformers.trainer",
)  # fmt: skip
ADDRESS = "COMMONWEIGHT_TESTS_APART"


def run(*args: object, timeout: float = 300, **how) -> subprocess.CompletedProcess[str]:
    """As subprocess.run([sys.executable, *args], capture_output=True, text=True); of Python's flags -W alone."""
    return Apart(*args, **how).wait(timeout)


class Apart:
    """As subprocess.Popen; args begin with `-W how` or none, and go on with `-m module` or `-c code`."""

    def __init__(self, *args: object, env: dict[str, str] | None = None, cwd: str | Path | None = None) -> None:
        self.args, self.held = list(map(str, args)), contextlib.ExitStack()
        self.told = [self.held.enter_context(tempfile.NamedTemporaryFile("r")) for _ in range(2)]
        self.line = self.held.enter_context(socket.socket(socket.AF_UNIX))
        self.line.connect(os.environ[ADDRESS])
        ask = {
            "args": self.args, "env": dict(os.environ if env is None else env), "cwd": str(cwd or os.getcwd()),
            "files": [f.name for f in self.told],
        }  # fmt: skip
        self.line.sendall(json.dumps(ask).encode() + b"\n")
        self.answers = self.held.enter_context(self.line.makefile())
        self.pid = int(self.answers.readline())

    def wait(self, timeout: float = 300) -> subprocess.CompletedProcess[str]:
        """Ends it where that takes longer."""
        self.line.settimeout(timeout)
        with self.held:
            try:
                status = int(self.answers.readline())
            except TimeoutError:
                with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
                    os.kill(self.pid, signal.SIGKILL)
                raise
            code = os.waitstatus_to_exitcode(status)
            return subprocess.CompletedProcess(self.args, code, *(f.read() for f in self.told))

    def kill(self) -> None:
        if not self.answers.closed:
            with contextlib.suppress(ProcessLookupError):  # it has ended, and nobody waited for it
                os.kill(self.pid, signal.SIGKILL)
            self.wait()


@contextlib.contextmanager
def server() -> Iterator[None]:
    """For one run of pytest, its workers included; it loads the libraries when it is first asked."""
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as listening:
        listening.bind(f"{folder}/s")
        listening.listen(64)
        at = listening.fileno()
        env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"OMP_NUM_THREADS": "1"}
        python = subprocess.Popen([sys.executable, "-P", __file__, str(at)], env=env, pass_fds=[at], stdin=-1)
        os.environ[ADDRESS] = f"{folder}/s"
        try:
            yield
        finally:
            del os.environ[ADDRESS]
            python.communicate()  # its input ends, and so does it


def _asked(listening: socket.socket) -> dict:
    """Returns in a new process for each that is asked for. The server itself ends with the one that started it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with selectors.DefaultSelector() as ready:
        for source in (listening, sys.stdin):
            ready.register(source, selectors.EVENT_READ)
        while sys.stdin not in [key.fileobj for key, _ in ready.select()]:
            line, _ = listening.accept()
            _load()
            _reap()
            if not os.fork():
                return _child(line)
            line.close()
    _reap()
    sys.exit()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _load() -> None:
    with contextlib.redirect_stderr(io.StringIO()):  # one of them tells what nobody asked for
        for name in LIBRARIES:
            importlib.import_module(name)
    gc.freeze()


def _child(line: socket.socket) -> dict:
    """Returns in the new process; its parent stays to tell how it ends."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    ask = json.loads(line.makefile().readline())
    if pid := os.fork():
        line.sendall(b"%d\n" % pid)
        status = os.waitpid(pid, 0)[1]
        with contextlib.suppress(OSError):  # nobody waits any more
            line.sendall(b"%d\n" % status)
        os._exit(0)
    for at, path in enumerate([os.devnull, *ask["files"]]):
        os.dup2(os.open(path, os.O_RDWR), at)
    return ask


def _begin(args: list[str], env: dict[str, str], cwd: str) -> None:
    """What Python does with such arguments."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    if args[0] == "-W":
        warnings.simplefilter(args[1])  # type: ignore[arg-type]
        args = args[2:]
    (kind, what), sys.argv[1:] = args[:2], args[2:]
    sys.path[:0] = [cwd if kind == "-m" else "", *filter(None, env.get("PYTHONPATH", "").split(os.pathsep))]
    if kind == "-m":
        runpy.run_module(what, run_name="__main__", alter_sys=True)
    else:
        sys.argv[0] = "-c"
        main = sys.modules["__main__"] = types.ModuleType("__main__")
        exec(what, main.__dict__)


if __name__ == "__main__":
    asked = _asked(socket.socket(fileno=int(sys.argv[1])))
    _begin(asked["args"], asked["env"], asked["cwd"])
