"""Adapters of PEFT, folders in and a folder out: the sum of their updates, read by PEFT as it was by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from tests.cli.test_merge import run
from tests.laws.subjects import stir
from tests.models import make

from ..sample import gap

W = [3.0, 1.0]
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning:peft")  # PEFT's own


@pytest.fixture(params=["llama", "gpt2"])
def model(request, tmp_path, monkeypatch):
    """A model, and two adapters that PEFT itself wrote: of other ranks, with patterns, one with rslora."""
    peft = pytest.importorskip("peft")
    monkeypatch.chdir(tmp_path)
    first, second = ("q_proj", "down_proj") if request.param == "llama" else ("c_attn", "c_fc")
    for i, name in enumerate("ab"):
        config = peft.LoraConfig(
            r=2 + i, lora_alpha=5, target_modules=[first, second], use_rslora=bool(i), rank_pattern={second: 4},
            alpha_pattern={second: 3}, fan_in_fan_out=request.param == "gpt2",
        )  # fmt: skip
        wrapped = peft.get_peft_model(make(request.param)[0], config)
        torch.manual_seed(i)
        for n, p in wrapped.named_parameters():
            if "lora_B" in n:
                torch.nn.init.normal_(p)
        wrapped.save_pretrained(name)
    return make(request.param)[0]


def merged_by_peft(model, folder):
    import copy

    from peft import PeftModel

    return PeftModel.from_pretrained(copy.deepcopy(model), folder).merge_and_unload().state_dict()


@pytest.mark.parametrize("weights", [None, W])
def test_linear_is_the_mean_of_the_models_that_peft_makes(weights, model, capsys):
    args = [] if weights is None else ["-w", "3", "-w", "1"]
    assert run("--tenants", "a", "b", *args, "--out", "c") == 0
    assert "c: " in capsys.readouterr().out
    wanted = cw.merge.linear([merged_by_peft(model, "a"), merged_by_peft(model, "b")], weights=weights)
    assert gap(merged_by_peft(model, "c"), wanted) < 1e-5
    assert gap(cw.merge.linear(["c"], base=model), wanted) < 1e-5
    assert sorted(p.name for p in Path("c").iterdir()) == [
        "adapter_config.json", "adapter_model.safetensors", "report.json",
    ]  # fmt: skip


def test_other_methods_and_ranks(model):
    found = cw.merge.adapter_folders(["a", "b"], "c", method="ties", weights=W, density=0.5, rank=16)
    full = [cw.merge.linear([x], base=model) for x in "ab"]
    zero = {n: torch.zeros_like(t) for n, t in full[0].items()}
    base = {n: t for n, t in model.state_dict().items()}
    delta = [{n: x[n] - base[n] for n in x} for x in full]
    changed = {n for n in base if delta[0][n].any()}
    wanted = cw.merge.ties(
        [{n: d[n] for n in changed} for d in delta], {n: zero[n] for n in changed}, weights=W, density=0.5
    )
    got = cw.merge.linear(["c"], base=model)
    assert len(found.error) == len(changed) and min(found.error.values()) >= 0
    for n in changed:
        lost = ((got[n] - base[n] - wanted[n]).norm() / wanted[n].norm()).item()
        assert lost <= max(found.error.values()) + 1e-4
    cut = cw.merge.adapter_folders(["a", "b"], "d", rank=2)
    assert max(cut.error.values()) > 0.01
    assert {len(t) for k, t in load_file("d/adapter_model.safetensors").items() if "lora_A" in k} == {2}


@pytest.fixture
def two(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in "ab":
        host = cw.Host(make("llama")[0])
        stir(host.add(name, "lora", rank=2))
        host.export_peft(name, name)
        host.save(name, f"{name}.safetensors")


def edit(**more):
    Path("b/report.json").unlink(missing_ok=True)
    config = json.loads(Path("b/adapter_config.json").read_text())
    Path("b/adapter_config.json").write_text(json.dumps({**config, **more}))


def _head():
    Path("b/report.json").unlink()
    file = "b/adapter_model.safetensors"
    save_file({**load_file(file), "base_model.model.score.weight": torch.ones(2, 2)}, file)


def _without(end):
    Path("b/report.json").unlink()
    file = "b/adapter_model.safetensors"
    found = load_file(file)
    save_file({k: t for k, t in found.items() if k != next(n for n in found if n.endswith(end))}, file)


def _broken():
    Path("b/adapter_config.json").write_text("{")


def _other():
    file = "b/adapter_model.safetensors"
    save_file({k: t + 1 for k, t in load_file(file).items()}, file)


@pytest.mark.parametrize(
    ("change", "args", "message"),
    [
        (lambda: edit(peft_type="VERA"), ["a", "b"], "adapter (b): an adapter of type VERA; LORA can be merged"),
        (lambda: edit(use_dora=True), ["a", "b"], "adapter (b): the adapter has use_dora, which is not read"),
        (lambda: edit(init_lora_weights="pissa"), ["a", "b"], "its base is another than the model"),
        (_head, ["a", "b"], "base_model.model.score.weight: adapter (b) has this beside LoRA's factors"),
        (lambda: _without("lora_B.weight"), ["a", "b"], "lora_B.weight is missing beside its other factor"),
        (lambda: _without("lora_A.weight"), ["a", "b"], "lora_B.weight has no A beside it"),
        (lambda: Path("b/adapter_model.safetensors").unlink(), ["a", "b"], "b: has no adapter_model.safetensors"),
        (lambda: _broken(), ["a", "b"], "adapter (b): b/adapter_config.json: not a whole JSON file"),
        (lambda: _other(), ["a", "b"], "b/adapter_model.safetensors: not as commonweight wrote it"),
        (lambda: None, ["a"], "adapters: 1 given; give at least two"),
        (lambda: None, ["a", "b.safetensors"], "a is a PEFT adapter's folder and b.safetensors is not"),
        (lambda: None, ["a", "b", "--space", "pools"], "--space pools and --eval are for tenants"),
        (lambda: None, ["a", "b", "-o", "density=0.5"], "unknown option of linear 'density'"),
        (lambda: None, ["a", "b", "-w", "1"], "linear: 1 weight for 2 models"),
        (lambda: Path("out").mkdir(), ["a", "b"], "out already exists"),
    ],
)
def test_what_is_refused(change, args, message, two, capsys):
    change()
    assert run("--tenants", *args, "--out", "out") == 2
    assert message in capsys.readouterr().err and not list(Path().glob("out/*"))


def test_overwrite(two, capsys):
    args = ["--tenants", "a", "b", "--out", "out"]
    assert run(*args) == 0 and run(*args) == 2
    assert "out already exists; choose another name, or replace it with --overwrite" in capsys.readouterr().err
    with pytest.raises(cw.CommonweightError, match="out already exists"):
        cw.merge.adapter_folders(["a", "b"], "out")
    before = Path("out/adapter_model.safetensors").read_bytes()
    assert run(*args, "--overwrite", "--rank", "1") == 0
    assert Path("out/adapter_model.safetensors").read_bytes() != before
    cw.merge.adapter_folders(["a", "b"], "out", overwrite=True)
    assert Path("out/adapter_model.safetensors").read_bytes() == before


@pytest.mark.parametrize("method", ["ties", "linear"])
@pytest.mark.parametrize("given", [torch.tensor([0.5, 0.25]), np.array([0.5, 0.25]), [np.float32(0.5), 0.25]])
def test_weights_of_torch_and_numpy(method, given, two):
    cw.merge.adapter_folders(["a", "b"], "x", method=method, weights=given)
    cw.merge.adapter_folders(["a", "b"], "y", method=method, weights=[0.5, 0.25])
    x, y = (load_file(f"{n}/adapter_model.safetensors") for n in "xy")
    assert gap(x, y) == 0


def test_a_file_as_the_folder_s_name_and_another_base(two, capsys):
    assert run("--tenants", "a", "b", "--out", "c.safetensors") == 2
    assert "--out must name a folder" in capsys.readouterr().err
    edit(base_model_name_or_path="elsewhere")
    assert run("--tenants", "a", "b", "--out", "c") == 0
    assert "notice: b: its base is called 'elsewhere'" in capsys.readouterr().err
    with pytest.raises(
        cw.CommonweightError, match=r"lora: adapter 0 is 'a'; wanted a state dict: cw.merge.adapter_fol"
    ):
        cw.merge.lora(["a", "b"])
