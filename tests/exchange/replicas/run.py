"""One process of a run; python -m tests.exchange.replicas.run FOLDER MODEL OPTIONS CLIENT CLIENTS [LIGHTHOUSE [DIE]]"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch

from commonweight.exchange.replicas import exchange
from commonweight.exchange.replicas.carrier import carrier
from commonweight.exchange.replicas.disk import Disk
from commonweight.exchange.replicas.engine import Replica
from commonweight.exchange.setting import by_client
from commonweight.exchange.splits import split
from tests.adapt import tiny
from tests.exchange import small

RECIPE = {"rounds": 4, "batch_size": 4, "lr": 1e-2, "schedule": "constant"}


def worker(rank, port, folder, model, options, clients):
    torch.distributed.init_process_group("gloo")
    for name, (method, more, recipe) in options.items():
        if name == "stopped":
            stopped(folder, model, more, rank, clients, **recipe)
        else:
            one(folder, model, name, more, rank, clients, carrier(), method=method, **recipe)
    torch.distributed.destroy_process_group()


def one(folder, model, name, options, client, clients, by, die=None, method="diloco", **recipe):
    p = small.prepared(model, method, options, clients=clients, **{**RECIPE, **recipe})
    rows = tiny.rows(16)
    mine = by_client(p.task, rows, split(rows, clients, "iid", seed=0))[client]

    def say(line):
        if die is not None:
            print(json.dumps(line), flush=True)
        if line["round"] == die:
            os.kill(os.getpid(), signal.SIGKILL)

    done = exchange(p, mine, by, say)
    torch.save((done.state.tensors, done.curve), f"{folder}/{name}{client}.pt")
    return done


def stopped(folder, model, options, client, clients, **recipe):
    """As if all were killed when the first process had not yet written the last round."""
    rows = split(tiny.rows(16), clients, "iid", seed=0)[client]
    for resume in (False, True):
        p = small.prepared(model, "diloco", options, clients=clients, **RECIPE, **recipe)
        disk = Disk(Path(folder) / "disk", client, "a run")
        if resume and client == 0:
            disk._path(disk.rounds()).unlink()
        torch.distributed.barrier()
        replica = Replica(p, carrier(), by_client(p.task, tiny.rows(16), [rows])[0], disk=disk)
        if resume:
            replica.resume()
            assert len(replica.curve) == RECIPE["rounds"] - 1
        replica.run()
        torch.distributed.barrier()
    torch.save((replica.state.tensors, replica.curve), f"{folder}/stopped{client}.pt")


if __name__ == "__main__":
    from commonweight.exchange.replicas.ft import Torchft

    torch.set_num_threads(1)
    folder, model, options, client, clients, lighthouse, die, rounds = sys.argv[1:]
    one(
        folder, model, "ft", json.loads(options), int(client), int(clients),
        Torchft(int(client), int(clients), lighthouse, minimum=1, seconds=10.0), int(die), rounds=int(rounds),
    )  # fmt: skip
