"""Real Flower processes, a third of the clients killed at random moments: the run ends, and every loss is counted.

A SuperLink and a SuperNode for each client on this machine. A node is killed with everything it started, and comes back
some seconds later. --flower: the Python of an environment that has this library's needs and flwr.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from commonweight.exchange.flower import app

from ..shapes import minilm_folder
from . import keep
from .flower import free_port, rounds_done, superlink
from .proof import DATA

CLIENTS, ROWS = 3, 48
HOW = {"steps": 1, "batch_size": 8, "lr": 1e-2, "seed": 0, "minimum": 1, "private": "*head*"}


class Nodes:
    """SuperNodes of this machine, one for each client."""

    def __init__(self, folder: Path, env: dict[str, str], commands: Path, port: int):
        self.folder, self.env, self.commands, self.port = folder, env, commands, port
        self.running: dict[int, subprocess.Popen] = {}

    def start(self, client: int) -> None:
        line = [self.commands / "flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{self.port}"]
        line += ["--port", str(free_port())]
        line += ["--node-config", f'client={client} state="{self.folder / "memory"}"']
        with (self.folder / f"node{client}.log").open("a") as log:
            self.running[client] = subprocess.Popen(
                line, env=self.env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def kill(self, client: int) -> None:
        """The node and the process that trains for it."""
        node = self.running.pop(client)
        os.killpg(node.pid, signal.SIGKILL)
        node.wait()

    def stop(self) -> None:
        for client in list(self.running):
            self.kill(client)


def accounts(run: dict[str, Any], rounds: int) -> dict[str, Any]:
    """What must hold of a run in which clients were lost. Raises: AssertionError."""
    curve, seats = run["curve"], run["clients"]
    assert [r["round"] for r in curve] == list(range(rounds)), "a round is missing"
    for r in curve:
        assert r["replies"] + sum(r["refused"].values()) == r["clients"], f"round {r['round']}: a client is not counted"
    assert sum(s["rounds"] for s in seats.values()) == sum(r["replies"] for r in curve), "an answer was lost"
    assert sum(s["up"] for s in seats.values()) == sum(r["up"] for r in curve), "bytes were lost"
    lost: dict[str, int] = {}
    for r in curve:
        for why, n in r["refused"].items():
            lost[why] = lost.get(why, 0) + n
    return {"replies": sum(r["replies"] for r in curve), "lost": lost}


def main(python: str, rounds: int = 30) -> list[dict]:
    drawn, kills = random.Random(0), 0
    with tempfile.TemporaryDirectory() as at:
        folder = Path(at)
        lines = (DATA / "trec.train.tsv").read_text("utf-8").splitlines()
        (folder / "rows.tsv").write_text("\n".join(lines[: ROWS + 1]) + "\n")
        made = app(
            str(minilm_folder()), folder / "app", method="fed-sb", options={"rank": 4}, rows=str(folder / "rows.tsv"),
            clients=CLIENTS, rounds=rounds, wait=300.0, timeout=180.0, **HOW,
        )  # fmt: skip
        out = folder / "app-run"
        with superlink(folder / "home", python) as (env, commands, port):
            nodes = Nodes(folder, env, commands, port)
            try:
                for c in range(CLIENTS):
                    nodes.start(c)
                began = time.monotonic()
                with (folder / "run.log").open("w") as log:
                    running = subprocess.Popen(
                        [commands / "flwr", "run", made, "--stream"], env=env, stdout=log, stderr=subprocess.STDOUT
                    )
                    seen = 0
                    while running.poll() is None:
                        done = rounds_done(out)
                        if done > seen:
                            print(f"round {done}, {time.monotonic() - began:.0f} s, {kills} killed", flush=True)
                            seen = done
                            victim = drawn.randrange(CLIENTS)  # one of three, somewhere in the next round
                            time.sleep(drawn.uniform(0, 25))
                            if victim in nodes.running and running.poll() is None:
                                nodes.kill(victim)
                                kills += 1
                                time.sleep(drawn.uniform(0, 10))
                                nodes.start(victim)
                        time.sleep(0.2)
                if running.returncode:
                    raise RuntimeError((folder / "run.log").read_text()[-2000:])
            finally:
                nodes.stop()
        found = accounts(json.loads((out / "run.json").read_text()), rounds)
        assert any((out / "store").rglob("*.safetensors")), "no tenant was stored"
    row = {
        "kind": "killed",
        "what": f"{rounds} rounds of real Flower processes, {CLIENTS} clients, one killed a round at a random moment",
        "unit": "lost", "target": None, "rounds": rounds, "clients": CLIENTS, "kills": kills, **found,
        "seconds": round(time.monotonic() - began),
    }  # fmt: skip
    return keep(row)
