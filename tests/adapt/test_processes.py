"""Two processes train as one: the same step, the same files, written once."""

import os
import socket
import warnings
from pathlib import Path

import pytest
import torch

from commonweight import CommonweightError
from commonweight.adapt import adapt, open_host, processes
from commonweight.adapt.files import run
from tests.adapt import tiny


def texts(n):
    """Rows of very different length: a mean of the processes' means would be another number."""
    return [{"text": " ".join(tiny.WORDS[: 2 + (7 * i) % 30])} for i in range(n)]


def train(name, bert, llama, folder, rows, **more):
    """17 rows in batches of 8: the last batch has one row, for one process alone."""
    data = tiny.jsonl(Path(folder) / f"{name}-{processes.rank()}.jsonl", rows)
    how = {"method": "lora", "options": {"rank": 2}, "batch_size": 8, "epochs": 2, "lr": 1e-2, "dtype": "float32"}
    seen = []
    files = run(
        str(llama if more.get("task") == "lm" else bert), str(data), Path(folder) / f"{name}.safetensors", dev="0.2",
        say=lambda _: None, progress=seen.append, **how, **more,
    )  # fmt: skip
    return files.result, seen


RUNS = {"c": (tiny.rows(17), {}), "l": (texts(17), {"task": "lm", "accumulate": 2, "max_length": 16})}


def worker(rank, port, folder, bert, llama):
    warnings.simplefilter("ignore")
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"}
    torch.set_num_threads(1)
    for name, (rows, more) in RUNS.items():
        result, seen = train(name, bert, llama, folder, rows, **more)
        out = {n: p.detach() for n, p in result.tenant.named_parameters()}
        told = {"curve": result.curve, "seen": len(seen), "tokens": seen[-1].tokens if seen else 0}
        torch.save((out, told), f"{folder}/{name}{rank}.pt")
    with pytest.raises(CommonweightError, match="embed in 2 processes: the other rows of a batch are its negatives"):
        adapt(open_host(bert), "t", tiny.pairs(8), task="embed")
    processes.leave()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without torch.distributed")
def test_two_processes_train_as_one(bert, llama, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    torch.multiprocessing.spawn(worker, (port, str(tmp_path / "two"), bert, llama), nprocs=2)  # type: ignore[attr-defined]
    for name, (rows, more) in RUNS.items():
        result, seen = train(name, bert, llama, tmp_path / "one", rows, **more)
        (a, first), (b, second) = (torch.load(tmp_path / "two" / f"{name}{rank}.pt") for rank in range(2))
        for n, p in result.tenant.named_parameters():
            assert torch.equal(a[n], b[n])
            torch.testing.assert_close(a[n], p.detach(), atol=1e-5, rtol=1e-5)
        assert [c["loss"] for c in first["curve"]] == pytest.approx([c["loss"] for c in result.curve], abs=1e-5)
        assert (first["seen"], second["seen"]) == (len(seen), 0) and first["tokens"] == seen[-1].tokens
        assert (tmp_path / "two" / f"{name}.safetensors").is_file() and (tmp_path / "two" / f"{name}.json").is_file()
        assert not (tmp_path / "two" / f"{name}.checkpoint").exists()


def test_alone():
    assert (processes.world(), processes.rank(), processes.first()) == (1, 0, True)
    assert processes.total(1.5, 2) == [1.5, 2]
