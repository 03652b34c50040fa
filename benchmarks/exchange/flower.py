"""Flower's own simulation of an app: a SuperLink of its own, `flwr run`, and how long its rounds take."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONFIG = '[superlink]\ndefault = "here"\n\n[superlink.here]\naddress = "127.0.0.1:{port}"\ninsecure = true\n'


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def superlink(home: Path, python: str = sys.executable, *more: str) -> Iterator[tuple[dict[str, str], Path, int]]:
    """(environment, folder of Flower's commands, port) while a SuperLink runs whose settings and logs are in `home`.
    It installs nothing by itself. more: of its options. Raises: RuntimeError where it does not come up in a minute."""
    home.mkdir(parents=True, exist_ok=True)
    port, commands = free_port(), Path(python).parent
    (home / "config.toml").write_text(CONFIG.format(port=port))
    env = {
        **os.environ, "FLWR_HOME": str(home), "PATH": f"{commands}:{os.environ['PATH']}", "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1", "RAY_USAGE_STATS_ENABLED": "0", "HF_HUB_OFFLINE": "1",
        "RAY_worker_niceness": "0",  # Ray's own is 15: beside anything else its workers would wait
    }  # fmt: skip
    line = [commands / "flower-superlink", "--insecure", "--disable-runtime-dependency-installation"]
    line += ["--host", "127.0.0.1", "--port", str(port), *more]
    with (home / "superlink.log").open("w") as log:
        running = subprocess.Popen(line, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            _up(port)
            yield env, commands, port
        finally:
            running.terminate()
            try:
                running.wait(30)
            except subprocess.TimeoutExpired:
                running.kill()
                running.wait()


def _up(port: int, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"flower-superlink did not answer on port {port} in {seconds:g} s")


def simulated(app: Path, nodes: int, home: Path, python: str = sys.executable, cpus: int = 2) -> list[float]:
    """Runs an app with so many nodes in Flower's simulation with Ray; seconds since the start at the end of each round.
    Raises: RuntimeError with the end of the log where the run fails."""
    out = Path(_config(app)["out"])
    with superlink(home, python, "--simulation") as (env, commands, _):
        sizes = ["--num-supernodes", nodes, "--init-args-num-cpus", cpus, "--client-resources-num-cpus", 1]
        setting = [commands / "flwr", "federation", "simulation-config", *map(str, sizes)]
        subprocess.run(setting, env=env, check=True, capture_output=True, timeout=120)
        began, ends = time.monotonic(), []
        with (home / "run.log").open("w") as log:
            running = subprocess.Popen(
                [commands / "flwr", "run", app, "--stream"], env=env, stdout=log, stderr=subprocess.STDOUT
            )
            while running.poll() is None:
                done = rounds_done(out)
                ends += [time.monotonic() - began] * (done - len(ends))
                time.sleep(0.1)
        ends += [time.monotonic() - began] * (rounds_done(out) - len(ends))
    if running.returncode or not ends:
        raise RuntimeError(f"flwr run ended with {running.returncode}:\n{(home / 'run.log').read_text()[-2000:]}")
    return ends


def _config(app: Path) -> dict:
    import tomllib

    return tomllib.loads((app / "pyproject.toml").read_text())["tool"]["flwr"]["app"]["config"]


def rounds_done(out: Path) -> int:
    """Rounds that are done."""
    try:
        return len(json.loads((out / "run.json").read_text())["curve"])
    except (OSError, ValueError):
        return 0
