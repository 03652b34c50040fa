"""LoRA out of a full model: exact where the change is of low rank, errors as stated, read by us and by PEFT."""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.cli import main
from tests.models import make


def pair(kind, rank, tmp_path, noise=0.0):
    """(base state, full state): every linear weight moved by a product of this rank."""
    model = make(kind)[0]
    state = {n: t.clone() for n, t in model.state_dict().items()}
    g = torch.Generator().manual_seed(0)
    full = dict(state)
    for s in cw.Host(model).sites:
        if s.kind == "linear":
            w = state[f"{s.name}.weight"]
            move = torch.randn(w.shape[0], rank, generator=g) @ torch.randn(rank, w.shape[1], generator=g)
            full[f"{s.name}.weight"] = w + 0.1 * move + noise * torch.randn(w.shape, generator=g)
    for name, tensors in (("base", state), ("full", full)):
        (tmp_path / name).mkdir()
        save_file(tensors, tmp_path / name / "model.safetensors")
    return state, full


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_a_change_of_low_rank_comes_back(kind, tmp_path):
    state, full = pair(kind, 3, tmp_path)
    found = cw.merge.extract(tmp_path / "full", tmp_path / "base", tmp_path / "lora", rank=3)
    assert set(found.ranks.values()) == {3} and found.total < 1e-5 and not found.left_out
    model = make(kind)[0]
    model.load_state_dict(state)
    host = cw.Host(model)
    host.import_peft("x", tmp_path / "lora")
    for n, w in host.merged("x").items():
        torch.testing.assert_close(w, full[n], atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
def test_peft_reads_it(tmp_path):
    peft = pytest.importorskip("peft")
    state, full = pair("llama", 3, tmp_path)
    cw.merge.extract(tmp_path / "full", tmp_path / "base", tmp_path / "lora", rank=4, ranks={"*.q_proj": 3})
    model, batch = make("llama")
    model.load_state_dict(full)
    with torch.no_grad():
        expected = model.eval()(**batch).logits
        model.load_state_dict(state)
        adapted = peft.PeftModel.from_pretrained(model, tmp_path / "lora").eval()
        torch.testing.assert_close(adapted(**batch).logits, expected, atol=1e-4, rtol=1e-4)


def test_errors_are_those_of_what_was_written(tmp_path):
    state, full = pair("llama", 2, tmp_path, noise=0.05)
    full["model.norm.weight"] = full["model.norm.weight"] + 0.5
    save_file(full, tmp_path / "full" / "model.safetensors")
    found = cw.merge.extract(tmp_path / "full", tmp_path / "base", tmp_path / "lora", rank=2, iterations=4)
    factors = load_file(tmp_path / "lora" / "adapter_model.safetensors")
    lost, whole = 0.0, 0.0
    for n in state:
        delta = (full[n] - state[n]).double()
        key = f"base_model.model.{n.removesuffix('.weight')}"
        low = torch.zeros_like(delta)
        if f"{key}.lora_A.weight" in factors:
            low = factors[f"{key}.lora_B.weight"].double() @ factors[f"{key}.lora_A.weight"].double()
            error = ((delta - low).norm() / delta.norm()).item()
            assert found.errors[n.removesuffix(".weight")] == pytest.approx(error, rel=1e-4)
            best = torch.linalg.svdvals(delta)[2:].norm() / delta.norm()
            assert best - 1e-6 <= error <= 1.02 * best
        lost += (delta - low).norm().item() ** 2
        whole += delta.norm().item() ** 2
    assert found.total == pytest.approx(math.sqrt(lost / whole), rel=1e-4)
    assert set(found.left_out) == {"model.norm.weight"}
    report = json.loads((tmp_path / "lora" / "report.json").read_text())
    assert report["total error"] == found.total and report["left_out"].keys() == found.left_out.keys()


def test_energy_chooses_the_smallest_rank(tmp_path):
    g = torch.Generator().manual_seed(1)
    u, v = (torch.linalg.qr(torch.randn(96, 96, generator=g))[0] for _ in range(2))
    s = 0.9 ** torch.arange(96.0)
    base = {"a.weight": torch.zeros(96, 96)}
    wanted = int((s.square().cumsum(0) / s.square().sum() < 0.99).sum()) + 1
    assert wanted > 16  # more than is tried at first
    found = cw.merge.extract({"a.weight": u * s @ v}, base, tmp_path / "x", energy=0.99)
    assert abs(found.ranks["a"] - wanted) <= 1 and found.errors["a"] ** 2 <= 0.01 + 1e-6
    capped = cw.merge.extract({"a.weight": u * s @ v}, base, tmp_path / "y", energy=0.99, rank=5)
    assert capped.ranks == {"a": 5}
    again = cw.merge.extract({"a.weight": u * s @ v}, base, tmp_path / "z", energy=0.99, rank=5)
    assert again.errors == capped.errors  # the same seed, the same numbers


@pytest.mark.parametrize(
    "options, what",
    [
        ({"rank": 0}, "rank is 0"),
        ({"energy": 1.5}, "energy is 1.5"),
        ({"iterations": -1}, "iterations is -1"),
        ({"ranks": {"*": 0}}, r"ranks\['\*'\] is 0"),
        ({"sites": "nothing*"}, "no matrix at 'nothing"),
    ],
)
def test_options_out_of_range(options, what, tmp_path):
    with pytest.raises(cw.CommonweightError, match=what):
        cw.merge.extract({"a.weight": torch.ones(4, 4)}, {"a.weight": torch.zeros(4, 4)}, tmp_path / "x", **options)
    assert not (tmp_path / "x").exists()


def test_models_that_do_not_fit(tmp_path):
    base = {"a.weight": torch.zeros(4, 4)}
    for model, what in [
        ({"a.weight": torch.ones(4, 5)}, r"a.weight: model has shape \(4, 5\), base has \(4, 4\)"),
        ({"b.weight": torch.ones(4, 4)}, "a.weight: model has no such tensor"),
        ({"a.weight": torch.full((4, 4), math.nan)}, "a.weight: model or base has NaN"),
        (base, "no matrix at"),
    ]:
        with pytest.raises(cw.CommonweightError, match=what):
            cw.merge.extract(model, base, tmp_path / "x")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pair("llama", 3, tmp_path)
    with pytest.raises(SystemExit) as done:
        main(["extract", "full", "--base", "base", "--rank", "4", "--rank-at", "*.q_proj=3", "--out", "lora"])
    assert not done.value.code and "14 modules, rank 3 to 4" in capsys.readouterr().out
    for args, what in [(["full", "--rank-at", "x"], "wanted a glob"), (["none"], "none: no such file")]:
        with pytest.raises(SystemExit) as done:
            main(["extract", *args, "--base", "base", "--out", "other"])
        assert done.value.code == 2 and what in capsys.readouterr().err
