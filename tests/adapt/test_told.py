"""Memory, logs and uploads of a run."""

import json
import sys
import types
from types import SimpleNamespace

import pytest
import torch

from commonweight import CommonweightError
from commonweight.adapt import adapt, hub, memory, open_host
from commonweight.adapt.logs import logged, values
from commonweight.adapt.trainer import Progress
from tests.adapt import tiny


def test_memory_is_told(bert):
    seen = []
    adapt(open_host(bert), "t", tiny.rows(8), method="lora", epochs=1, progress=seen.append)
    assert seen[-1].memory > 20e6 and memory.peak(torch.device("cpu")) >= seen[-1].memory


def test_without_proc(monkeypatch, tmp_path):
    monkeypatch.setattr(memory, "STATUS", tmp_path / "none")
    assert memory.peak(torch.device("cpu")) > 20e6


STEPS = [
    Progress("t", 1, 2, 0.5, None, 0.5, 1e-3, 10, 5),
    Progress("t", 2, 2, 0.4, {"accuracy": 1.0, "n": 3}, 1.0, 0, 20),
]


def test_what_is_written():
    assert values(STEPS[0]) == {
        "train/loss": 0.5, "train/learning_rate": 1e-3, "train/epoch": 0.5, "train/tokens": 10.0,
        "train/peak_memory_bytes": 5.0,
    }  # fmt: skip
    assert values(STEPS[1])["dev/accuracy"] == 1.0 and "dev/n" not in values(STEPS[1])


def test_trackio(monkeypatch, tmp_path):
    told, here = [], []
    fake = types.ModuleType("trackio")
    fake.init = lambda **how: told.append(how)  # type: ignore[attr-defined]
    fake.log = lambda v, step: told.append((step, v["train/loss"]))  # type: ignore[attr-defined]
    fake.finish = lambda: told.append("end")  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    monkeypatch.setenv("TRACKIO_DIR", "")
    with logged(f"trackio:{tmp_path}", "mine", here.append) as progress:
        for p in STEPS:
            progress(p)
    assert told == [{"project": "commonweight", "name": "mine"}, (1, 0.5), (2, 0.4), "end"] and here == STEPS


@pytest.mark.filterwarnings("ignore")
def test_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with logged(f"tensorboard:{tmp_path}", "mine") as progress:
        for p in STEPS:
            progress(p)
    found = EventAccumulator(str(tmp_path))
    found.Reload()
    assert [(e.step, round(e.value, 3)) for e in found.Scalars("train/loss")] == [(1, 0.5), (2, 0.4)]


def test_no_log_and_an_unknown_one():
    with logged(None, "mine", print) as progress:
        assert progress is print
    with pytest.raises(CommonweightError, match="unknown log 'wandb'"), logged("wandb", "mine"):
        pass


class Hub:
    """What huggingface_hub's HfApi would be asked."""

    def __init__(self, readme=False):
        self.readme, self.asked = readme, []

    def create_repo(self, repo, **how):
        self.asked.append((repo, how))
        return SimpleNamespace(repo_id=f"me/{repo}" if "/" not in repo else repo)

    def file_exists(self, repo, name):
        return self.readme

    def create_commit(self, repo, operations, commit_message):
        self.asked.append((repo, {o.path_in_repo: o.path_or_fileobj for o in operations}, commit_message))


@pytest.mark.parametrize("readme", [False, True])
def test_upload(tmp_path, readme):
    file, report = tmp_path / "tone.safetensors", tmp_path / "tone.json"
    file.write_bytes(b"pools")
    report.write_text(json.dumps({"a": 1}))
    api = Hub(readme)
    assert hub.push("tone", [file, report], "org/model", api) == "https://huggingface.co/me/tone"
    (_, how), (repo, files, message) = api.asked
    assert how == {"exist_ok": True, "private": True} and repo == "me/tone" and message == "Upload tone"
    assert files["tone.safetensors"] == b"pools" and b'"a"' in files["tone.json"] and ("README.md" in files) != readme
    if not readme:
        assert b"base_model: org/model" in files["README.md"]


def test_what_the_hub_refuses(tmp_path):
    file = tmp_path / "tone.safetensors"
    file.write_bytes(b"pools")
    api = Hub()
    api.create_repo = lambda *_, **__: (_ for _ in ()).throw(OSError("401 Client Error"))  # type: ignore[method-assign]
    with pytest.raises(CommonweightError, match=r"tone: 401 Client Error; the tenant lies in .*tone\.safetensors"):
        hub.push("me/tone", [file], str(tmp_path), api)
    with pytest.raises(CommonweightError, match="wanted a repository's name"):
        hub.check("a/b/c")
    assert "base_model" not in hub.card(str(tmp_path), "tone.safetensors")
