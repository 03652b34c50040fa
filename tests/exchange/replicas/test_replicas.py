"""Processes that exchange without a server hold the same bits as the simulated run."""

import signal
from pathlib import Path

import pytest
import torch

from commonweight.core import CommonweightError
from commonweight.exchange import simulate
from commonweight.exchange.replicas import Alone, exchange
from commonweight.exchange.replicas.carrier import framed, unframed
from commonweight.exchange.replicas.disk import Disk
from commonweight.exchange.replicas.files import run
from tests.adapt import tiny
from tests.apart import Apart
from tests.exchange import small
from tests.exchange.replicas.run import RECIPE, worker
from tests.in_two import in_two, wanted

ROOT = Path(__file__).parents[3]
OPTIONS = {
    "plain": {"rank": 2, "steps": 2},
    "streaming": {"rank": 2, "steps": 4, "fragments": 2, "delay": 1, "alpha": 0.5, "bits": 4},
    "synchronous": {"rank": 2, "steps": 1, "outer_lr": 1.0, "outer_momentum": 0.0, "bits": 8},
}
BOTH = {"codec": "int4", "codec_down": "int8", "codec_feedback": "both"}
RUNS = {k: ("diloco", v, {}) for k, v in OPTIONS.items()} | {
    "coded": ("diloco", {"rank": 2, "steps": 2}, {"codec": "int8"}),
    "lossy": ("fedavg", {"rank": 2}, {"codec": "int4", "codec_feedback": "none"}),
    "down": ("fed-sb", {"rank": 4}, BOTH),
    "stopped": ("diloco", {**OPTIONS["streaming"], "bits": 32}, {"codec": "int4"}),
}


@wanted
def test_two_processes_are_the_simulated_run(bert, tmp_path):
    """With codecs too: what one lost is kept by each client, and on disk."""
    in_two(worker, str(tmp_path), bert, RUNS, 2)
    for name, (method, options, recipe) in RUNS.items():
        run = simulate(
            small.prepared_host(bert), tiny.rows(16), method=method, options=options, clients=2, mixed=1,
            **RECIPE, **recipe,
        )  # fmt: skip
        (a, first), (b, second) = (torch.load(tmp_path / f"{name}{i}.pt") for i in range(2))
        assert small.same(a, b) and small.same(a, run.state.tensors)
        for i, curve in enumerate((first, second)):
            assert [r["replies"] for r in curve] == [2] * RECIPE["rounds"]
            assert sum(r["up"] for r in curve) == run.seats[i].up
        base = sum(p.numel() for p in small.prepared_host(bert).model.parameters())
        assert max(r["up"] for r in first) < 4 * base / 8, "the frozen base stays where it is"


@pytest.mark.parametrize(
    ("method", "options", "codecs"),
    [("fedavg", {"rank": 2}, {}), ("diloco", {"rank": 2, "steps": 4, "fragments": 2, "delay": 1}, {"codec": "int4"})],
)
def test_one_process_alone(bert, method, options, codecs):
    p = small.prepared(bert, method, options, clients=1, **codecs, **RECIPE)
    rows = p.task.examples(tiny.rows(8))
    done = exchange(p, rows, Alone())
    run = simulate(
        small.prepared_host(bert), tiny.rows(8), method=method, options=options, clients=1, mixed=1, **codecs, **RECIPE
    )  # fmt: skip
    assert small.same(done.state.tensors, run.state.tensors)


def test_one_replica_with_plain_outer_steps_is_plain_training(bert):
    """eta = 1, mu = 0: after every round the outer numbers are the replica's own."""
    p = small.prepared(bert, "diloco", {"rank": 2, "steps": 2, "outer_lr": 1.0, "outer_momentum": 0.0}, clients=1)
    done = exchange(p, p.task.examples(tiny.rows(8)), Alone())
    for n, v in p.method.pools(p.setting, done.state).items():
        torch.testing.assert_close(v, done.keep[n], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("after", [1, 3, 4])
def test_a_process_that_was_killed_goes_on_to_the_same_bits(bert, tmp_path, after):
    """With a message on its way while the next round has begun, and an optimiser of its own."""
    disk, done = Disk(tmp_path / "rounds", 0, "mine"), []

    def killed(line):
        if line["round"] + 1 == after:
            raise InterruptedError

    for on, say, resume in ((None, None, False), (disk, killed, False), (disk, None, True)):
        p = small.prepared(bert, "diloco", OPTIONS["streaming"], clients=1, **RECIPE)
        rows = p.task.examples(tiny.rows(8))
        try:
            done.append(exchange(p, rows, Alone(), say or (lambda _: None), on, resume))
        except InterruptedError:
            assert disk.rounds() == after and len(disk._have()) <= 2
    assert small.same(done[0].state.tensors, done[1].state.tensors) and small.same(done[0].keep, done[1].keep)
    assert done[0].curve == done[1].curve


def test_what_cannot_be_gone_on_with(bert, tmp_path):
    p = small.prepared(bert, "fedavg", clients=1, **RECIPE)
    disk = Disk(tmp_path / "rounds", 0, "mine")
    exchange(p, p.task.examples(tiny.rows(8)), Alone(), disk=disk)
    with pytest.raises(CommonweightError, match="of a run with other settings; mine, and this one has other"):
        Disk(tmp_path / "rounds", 0, "other").read(4)
    with pytest.raises(CommonweightError, match="all go on after 2 rounds, which client 0 cannot read"):
        disk.read(2)
    rows, state = str(tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(8))), tmp_path / "rounds"
    with pytest.raises(CommonweightError, match="--resume goes on from the folder of --state"):
        run(str(bert), rows, tmp_path / "t.safetensors", resume=True)
    with pytest.raises(CommonweightError, match="--resume goes on with it"):
        run(str(bert), rows, tmp_path / "t.safetensors", state=state, say=lambda _: None)


def test_the_command_goes_on(bert, tmp_path):
    """After its last round too: nothing is trained again."""
    rows, how = str(tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(8))), {"rounds": 2, "batch_size": 4}
    out, told = [tmp_path / f"{k}.safetensors" for k in "ab"], []
    run(str(bert), rows, out[0], pairs=["rank=2", "steps=1"], state=tmp_path / "s", say=lambda _: None, **how)
    run(str(bert), rows, out[1], pairs=["rank=2", "steps=1"], state=tmp_path / "s", resume=True, say=told.append, **how)
    assert out[0].read_bytes() == out[1].read_bytes() and not told
    tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(8, seed=1))
    with pytest.raises(CommonweightError, match="of a run with other settings"):
        run(str(bert), rows, out[1], pairs=["rank=2", "steps=1"], state=tmp_path / "s", resume=True, **how)


def test_a_process_that_is_gone_is_told(bert):
    class Gone(Alone):
        def send(self, data, most):
            def wait():
                raise CommonweightError("a process is gone, and the others cannot go on without it")

            return wait

    with pytest.raises(CommonweightError, match="a process is gone"):
        exchange((p := small.prepared(bert, "fedavg", clients=1)), p.task.examples(tiny.rows(8)), Gone())


def test_frames():
    assert unframed(framed(b"abc", 10)) == b"abc" and len(framed(b"a", 10)) == 18


def test_a_process_that_died_goes_on_with_the_others(bert, tmp_path):
    """A Lighthouse of torchft; client 1 is killed after round 1, and started again."""
    coordination = pytest.importorskip("torchft.coordination")
    options = '{"rank": 2, "steps": 2, "bits": 8}'
    light = coordination.LighthouseServer(
        bind="127.0.0.1:0", min_replicas=2, join_timeout_ms=8000, quorum_tick_ms=100, heartbeat_timeout_ms=2000
    )

    def start(client, die):
        of = (tmp_path, bert, options, client, 2, light.address(), die, 4)
        return Apart("-m", "tests.exchange.replicas.run", *of, cwd=ROOT)

    first, second = start(0, -1), start(1, 1)
    try:
        assert second.wait(100).returncode == -signal.SIGKILL
        second = start(1, -1)
        assert [p.wait(100).returncode for p in (first, second)] == [0, 0]
    finally:
        for process in (first, second):
            process.kill()
        light.shutdown()
    (a, one), (b, two) = (torch.load(tmp_path / f"ft{i}.pt") for i in range(2))
    assert small.same(a, b)
    assert [r["replies"] for r in one] == [r["replies"] for r in two] == [2] * 4


def test_files(bert, tmp_path):
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(16))
    how = {"pairs": ["rank=2", "steps=2"], "rounds": 2, "batch_size": 4, "dtype": "float32"}
    done, found = run(str(bert), str(rows), tmp_path / "t.safetensors", eval_file=str(rows), say=lambda _: None, **how)
    assert 0 <= found["accuracy"] <= 1 and (tmp_path / "t.safetensors").is_file()
    host = small.prepared_host(bert)
    host.load("t", tmp_path / "t.safetensors")
    for n, v in done.p.method.pools(done.p.setting, done.state).items():
        torch.testing.assert_close(host["t"].pools[n].detach(), v)
    with pytest.raises(CommonweightError, match="sample, dp_noise: processes without a server have none of it"):
        run(str(bert), str(rows), tmp_path / "u.safetensors", sample=1, dp_noise=1.0, **how)
    with pytest.raises(CommonweightError, match="--client belongs to --lighthouse"):
        run(str(bert), str(rows), tmp_path / "u.safetensors", client=1, **how)
    with pytest.raises(CommonweightError, match="needs --clients N and --client 0 to N-1"):
        run(str(bert), str(rows), tmp_path / "u.safetensors", lighthouse="http://x", client=2, clients=2, **how)
