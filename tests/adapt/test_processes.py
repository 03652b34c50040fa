"""Two processes train as one: the same step, the same files, written once."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from commonweight import CommonweightError
from commonweight.adapt import adapt, open_host, processes
from commonweight.adapt.files import run
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.adapt.shard import asked
from tests.adapt import tiny
from tests.in_two import in_two, wanted


def texts(n):
    """Rows of very different length: a mean of the processes' means would be another number."""
    return [{"text": " ".join(tiny.WORDS[: 2 + (7 * i) % 30])} for i in range(n)]


def train(name, bert, llama, folder, rows, **more):
    """17 rows in batches of 8: the last batch has one row, for one process alone."""
    data = tiny.jsonl(Path(folder) / f"{name}-{processes.rank()}.jsonl", rows)
    how = {"method": "lora", "options": {"rank": 2}, "batch_size": 8, "epochs": 2, "lr": 1e-2, "dtype": "float32"}
    how |= more | ({"eval_file": str(data)} if "eval_file" in more else {})
    seen = []
    files = run(
        str(llama if more.get("task") == "lm" else bert), str(data), Path(folder) / f"{name}.safetensors", dev="0.2",
        say=lambda _: None, progress=seen.append, **how,
    )  # fmt: skip
    return files, seen


LM = {"task": "lm", "accumulate": 2, "max_length": 16}
COUNTED = {"method": "smora", "options": {"rank": 4, "active": 2, "bias": 0.01}, "epochs": 1}
GROWN = {"method": "triadaptlora", "options": {"target": 2, "block": 1}, "epochs": 3}
PRUNED = {
    "method": "apt", "epochs": 2,
    "options": {"rank": 1, "most": 2, "times": 2.0, "rounds": 2, "begin": 0.0, "heads": 4, "prune": 0.5},
}  # fmt: skip
RUNS = {
    "c": (tiny.rows(17), {}), "l": (texts(17), LM), "r": (tiny.rows(17), COUNTED), "g": (tiny.rows(17), GROWN),
    "p": (tiny.rows(17), PRUNED),
}  # fmt: skip
SHARDED = {
    "cs": (tiny.rows(17), {"options": {"rank": 2}, "method": "dora", "codec": "bfloat16"}),
    "ls": (texts(17), {**LM, "gradient_checkpointing": True, "eval_file": "dev"}),
}


def worker(rank, port, folder, bert, llama):
    for name, (rows, more) in {**RUNS, **SHARDED}.items():
        files, seen = train(name, bert, llama, folder, rows, shard=name in SHARDED, **more)
        result = files.result
        out = {n: p.detach() for n, p in result.tenant.pools.items()}
        told = {"curve": result.curve, "seen": len(seen), "tokens": seen[-1].tokens if seen else 0}
        told["evaluated"] = files.evaluated
        torch.save((out, told), f"{folder}/{name}{rank}.pt")
    with pytest.raises(CommonweightError, match="embed in 2 processes: the other rows of a batch are its negatives"):
        adapt(open_host(bert), "t", tiny.pairs(8), task="embed")
    shares(llama)
    grows(llama)
    processes.leave()


def grows(llama):
    """What wraps a module holds pools that a schedule replaces."""
    host, ids = open_host(llama, "lm", dtype="float32"), torch.randint(5, 40, (2, 6))
    tenant = host.add("t", "alora", rank=2)
    at = Scheduled(tenant, torch.optim.AdamW(alone(tenant.param_groups())), None, 2)
    wrapped = torch.nn.parallel.DistributedDataParallel(host.module("t"))
    wrapped(input_ids=ids, labels=ids).loss.backward()
    assert at.reshape(replace(tenant.config, ranks=(("*", 3),)))
    with pytest.raises(CommonweightError, match="in DistributedDataParallel and its like, make both anew"):
        wrapped(input_ids=ids)
    again = torch.nn.parallel.DistributedDataParallel(host.module("t"))
    again(input_ids=ids, labels=ids).loss.backward()
    assert all(p.grad.shape == p.shape for p in tenant.parameters())


def shares(llama):
    """Every process holds half of each block, and knows the base as the same."""
    host, plain = open_host(llama, "lm", dtype="float32", shard=True), open_host(llama, "lm", dtype="float32")
    host.add("t", "lora", rank=2)
    mine = sum(p.to_local().numel() for p in host.model.model.layers.parameters())  # type: ignore
    every = sum(p.numel() for p in plain.model.model.layers.parameters())  # type: ignore[union-attr,attr-defined]
    assert 0.4 * every < mine < 0.6 * every
    assert host.fingerprint == plain.fingerprint
    with pytest.raises(CommonweightError, match="shard: with quantize 'nf4' the base cannot be sharded"):
        open_host(llama, "lm", shard=True, quantize="nf4")


@wanted
def test_two_processes_train_as_one(bert, llama, tmp_path):
    (tmp_path / "two").mkdir()
    (tmp_path / "one").mkdir()
    in_two(worker, str(tmp_path / "two"), bert, llama)
    for name, (rows, more) in {**RUNS, **SHARDED}.items():
        files, seen = train(name, bert, llama, tmp_path / "one", rows, **more)
        result = files.result
        (a, first), (b, second) = (torch.load(tmp_path / "two" / f"{name}{rank}.pt") for rank in range(2))
        for n, p in result.tenant.pools.items():
            assert torch.equal(a[n], b[n])
            if name == "g":  # grown ranks: Adam divides gradients of rounding by their own size
                assert (a[n] - p.detach()).norm() <= 1e-3 * p.detach().norm() + 1e-5
            else:
                torch.testing.assert_close(a[n], p.detach(), atol=1e-5, rtol=1e-5)
        assert [c["loss"] for c in first["curve"]] == pytest.approx([c["loss"] for c in result.curve], abs=1e-5)
        assert (first["seen"], second["seen"]) == (len(seen), 0) and first["tokens"] == seen[-1].tokens
        assert (tmp_path / "two" / f"{name}.safetensors").is_file() and (tmp_path / "two" / f"{name}.json").is_file()
        assert not (tmp_path / "two" / f"{name}.checkpoint").exists()
        there, here = ((tmp_path / run / f"{name}.safetensors").stat().st_size for run in ("two", "one"))
        assert there == here
        if "eval_file" in more:
            assert second["evaluated"] == pytest.approx(files.evaluated, abs=1e-5)


def test_alone():
    assert (processes.world(), processes.rank(), processes.first()) == (1, 0, True)
    assert processes.total(1.5, 2) == [1.5, 2]


@pytest.mark.parametrize("line, asked", [
    (["python", "/bin/accelerate", "launch", "--cpu", "--num_processes", "2", "train.py"], 2),
    (["python", "-m", "accelerate.commands.launch", "--num_processes=3", "--cpu", "-m", "commonweight"], 3),
    (["/bin/accelerate", "launch", "--cpu", "--config_file", "two.yaml", "train.py"], 2),
    (["/bin/accelerate", "launch", "--cpu", "--config_file", "none.yaml", "train.py"], 1),
    (["/bin/accelerate", "launch", "--cpu", "--num_processes", "1", "train.py"], 1),
    (["bash"], 1),
])  # fmt: skip
def test_one_process_where_more_were_asked_for_is_told(line, asked, monkeypatch, tmp_path, llama):
    pytest.importorskip("accelerate")
    (tmp_path / "two.yaml").write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_CPU\nuse_cpu: true\nnum_processes: 2\n"
        "num_machines: 1\nmachine_rank: 0\nmixed_precision: 'no'\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    assert processes.alone_of(line) == 1
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert processes.alone_of(line) == asked
    assert processes.alone_of() == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert processes.alone_of(line) == 1


def test_that_line_names_what_starts_several(llama, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    monkeypatch.setattr(processes, "_parent", lambda: ["accelerate", "launch", "--cpu", "--num_processes", "2"])
    said: list[str] = []
    data = tiny.jsonl(tmp_path / "d.jsonl", texts(4))
    run(str(llama), str(data), tmp_path / "t.safetensors", task="lm", epochs=1, say=said.append)
    assert any("asked for 2 processes and has started one" in s and "torchrun --nproc-per-node 2" in s for s in said)


def test_what_cannot_be_sharded(llama, monkeypatch):
    with pytest.raises(CommonweightError, match="shard: there is one process, which holds the whole base"):
        open_host(llama, "lm", shard=True)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(CommonweightError, match="names DeepSpeed; adapt shards a base with FSDP2"):
        open_host(llama, "lm")


def test_a_configuration_of_accelerate_with_fsdp_is_read_and_put_aside(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert asked(False)
    assert "ACCELERATE_USE_FSDP" not in os.environ and "FSDP_CPU_RAM_EFFICIENT_LOADING" not in os.environ
    assert not asked(False)
