"""A run killed at any moment and resumed ends with the bits of an undisturbed one."""

import json
import os
from pathlib import Path

import pytest
import torch
from transformers import TrainerState

from commonweight import CommonweightError
from commonweight.adapt import adapt, open_host, run
from commonweight.adapt.checkpoint import Checkpoint, Store, read
from tests import apart
from tests.adapt import tiny
from tests.drawn import TIMES

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_killed_at_any_moment(tmp_path, bert):
    """At half of the moments that are named; at all of them by `make fuzz`."""
    tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(50))
    env = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONPATH": str(ROOT)}
    every = ["every"] if TIMES else []
    done = apart.run("-W", "ignore", "-m", "tests.adapt.killed", tmp_path, bert, *every, env=env, cwd=ROOT, timeout=500)
    assert done.returncode == 0, done.stderr
    ended = json.loads(done.stdout)
    assert ended[""][:2] == [0, 0], done.stderr
    for moment, (first, second, digest, files) in ended.items():
        if moment and not moment[0].isdigit():
            assert first == 9, f"{moment}: was not killed\n{done.stderr}"
        assert second == 0, f"{moment}: did not resume\n{done.stderr}"
        assert digest == ended[""][2], f"{moment}: other bits"
        assert files == ["legal.json", "legal.safetensors"], moment


def stop_at(step):
    def progress(p):
        if p.step == step:
            raise KeyboardInterrupt

    return progress


def call(model, folder, **change):
    tiny.jsonl(folder / "rows.jsonl", tiny.rows(40))
    options = {
        "method": "lora", "options": {"rank": 2}, "dtype": "float32", "epochs": 2, "batch_size": 8,
        "checkpoint_every": 2, "say": lambda _: None, **change,
    }  # fmt: skip
    return run(str(model), str(folder / "rows.jsonl"), folder / "t.safetensors", **options)


def test_another_run_does_not_take_up_the_checkpoint(bert, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        call(bert, tmp_path, progress=stop_at(5))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl", "t.checkpoint"]
    assert [p.name for p in (tmp_path / "t.checkpoint").iterdir()] == ["step-4"]
    with pytest.raises(CommonweightError, match=r"an unfinished run lies there; --resume continues it"):
        call(bert, tmp_path)
    with pytest.raises(CommonweightError, match=r"other settings \(.*options.*: then 2, now 3.*plan: .*\)"):
        call(bert, tmp_path, resume=True, options={"rank": 3})
    with pytest.raises(CommonweightError, match=r"epochs: then 2\.0, now 3\.0\)"):
        call(bert, tmp_path, resume=True, epochs=3)
    seen = []
    call(bert, tmp_path, resume=True, checkpoint_every=3, progress=lambda p: seen.append(p.step))
    assert seen == [5, 6, 7, 8, 9, 10]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["rows.jsonl", "t.json", "t.safetensors"]
    told = json.loads((tmp_path / "t.json").read_text())
    assert told["steps"] == 10 and [c["step"] for c in told["curve"]] == list(range(1, 11))


def test_other_rows_are_other_settings(bert, tmp_path):
    host = open_host(bert, dtype="float32")
    with pytest.raises(KeyboardInterrupt):
        adapt(
            host, "t", tiny.rows(20), method="probe", checkpoint=tmp_path / "c", checkpoint_every=1, progress=stop_at(2)
        )
    with pytest.raises(CommonweightError, match="train rows: then"):
        adapt(host, "t", tiny.rows(20, seed=1), method="probe", checkpoint=tmp_path / "c", resume=True)


def test_resume_without_a_checkpoint_starts(bert, tmp_path):
    assert call(bert, tmp_path, resume=True).result.steps == 10


def test_only_whole_checkpoints_count(tmp_path):
    store = Store(tmp_path / "c")
    assert store.newest() is None
    for step in (2, 4):
        store.write(step, TrainerState(global_step=step), Checkpoint({"x": torch.ones(2) * step}, {"a": [1.5]}))
    (tmp_path / "c" / "new-6").mkdir()
    (tmp_path / "c" / "old-step-8").mkdir()
    assert store.newest() == tmp_path / "c" / "step-4"
    found = read(store.newest())
    assert torch.equal(found.tensors["x"], torch.tensor([4.0, 4.0])) and found.facts == {"a": [1.5]}
    (store.newest() / "state.safetensors").write_bytes(b"torn")
    with pytest.raises(CommonweightError, match="the checkpoint is damaged"):
        read(store.newest())
    store.clear()
    assert not (tmp_path / "c").exists()


def test_a_checkpoint_that_cannot_be_written(tmp_path):
    (tmp_path / "c").write_text("a file is in the way")
    with pytest.raises(CommonweightError, match="the checkpoint cannot be written"):
        Store(tmp_path / "c").write(1, TrainerState(), Checkpoint({}, {}))


def test_a_run_that_turns_to_nan_stops_and_leaves_no_checkpoint(bert, tmp_path, monkeypatch):
    from commonweight.adapt import Classifier

    forward, calls = Classifier.forward, []

    def breaks(self, *args, **inputs):
        calls.append(1)
        out = forward(self, *args, **inputs)
        if len(calls) == 4:
            out.loss = out.loss * float("nan")
        return out

    with monkeypatch.context() as m:
        m.setattr(Classifier, "forward", breaks)
        with pytest.raises(CommonweightError, match=r"step 4: the loss is nan, at the learning rate 0\.25; lower it"):
            call(bert, tmp_path, lr=0.25)
    assert len(calls) == 4 and [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
    assert call(bert, tmp_path).result.steps == 10


def test_a_last_update_that_leaves_nan_is_an_error(bert, tmp_path, monkeypatch):
    from torch.optim import AdamW

    step, calls = AdamW.step, []

    def breaks(self, *args, **kwargs):
        calls.append(1)
        out = step(self, *args, **kwargs)
        if len(calls) == 10:
            with torch.no_grad():
                self.param_groups[0]["params"][0].view(-1)[0] = float("nan")
        return out

    with monkeypatch.context() as m:
        m.setattr(AdamW, "step", breaks)
        with pytest.raises(CommonweightError, match=r"step 10: its update left NaN or infinity in pool .*; lower it"):
            call(bert, tmp_path)
    assert len(calls) == 10 and [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_clearing_leaves_what_is_not_ours(tmp_path):
    Store(tmp_path).write(1, TrainerState(), Checkpoint({}, {}))
    (tmp_path / "mine.txt").write_text("kept")
    Store(tmp_path).clear()
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
