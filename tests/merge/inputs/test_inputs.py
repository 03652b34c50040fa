"""What may be merged beside plain checkpoints: adapters on a model, tied heads; and what is refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.merge.output import folder
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build
from commonweight.merge.stream import grid

from ..sample import gap

NAME = "model.layers.0.q_proj.weight"


@pytest.fixture
def base(tmp_path, monkeypatch):
    g = torch.Generator().manual_seed(0)
    state = {NAME: torch.randn(30, 8, generator=g), "model.norm.weight": torch.randn(8, generator=g)}
    (tmp_path / "base").mkdir()
    save_file(state, tmp_path / "base" / "model.safetensors")
    for i, (rank, alpha) in enumerate([(2, 4), (3, 3)]):
        (tmp_path / f"a{i}").mkdir()
        key = "base_model.model." + NAME.removesuffix(".weight")
        factors = {
            f"{key}.lora_A.weight": torch.randn(rank, 8, generator=g),
            f"{key}.lora_B.weight": torch.randn(30, rank, generator=g),
        }
        save_file(factors, tmp_path / f"a{i}" / "adapter_model.safetensors")
        (tmp_path / f"a{i}" / "adapter_config.json").write_text(
            json.dumps({"peft_type": "LORA", "r": rank, "lora_alpha": alpha})
        )
    monkeypatch.chdir(tmp_path)
    return state


def update(i):
    f = load_file(f"a{i}/adapter_model.safetensors")
    a, b = (next(t for k, t in f.items() if f"lora_{x}" in k) for x in "AB")
    return b @ a * json.loads(Path(f"a{i}/adapter_config.json").read_text())["lora_alpha"] / len(a)


@pytest.mark.parametrize("names", [["a0", "a1"], ["base+a0", "base+a1"]])
def test_adapters_are_models(names, base, monkeypatch):
    monkeypatch.setattr(grid, "LEAST", 20)
    monkeypatch.setattr(grid, "TOTAL", 40)
    done = folder.write(build(load({"method": "ties", "base": "base", "models": names})), "out")
    full = [{**base, NAME: base[NAME] + update(i)} for i in range(2)]
    assert gap(load_file(done.folder / "model.safetensors"), cw.merge.ties(full, base)) < 1e-6


def test_a_tied_head_is_written_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for i in range(2):
        (tmp_path / f"m{i}").mkdir()
        e = torch.randn(6, 4)
        save_file({"model.embed_tokens.weight": e, "lm_head.weight": e.clone()}, f"m{i}/model.safetensors")
        (tmp_path / f"m{i}" / "config.json").write_text(json.dumps({"tie_word_embeddings": True}))
    save_file({"model.embed_tokens.weight": e}, "m1/model.safetensors")  # one that has it once already
    done = folder.write(build(load({"method": "linear", "models": ["m0", "m1"]})), "out")
    assert list(load_file(done.folder / "model.safetensors")) == ["model.embed_tokens.weight"]
    save_file({"model.embed_tokens.weight": e, "lm_head.weight": e + 1}, "m1/model.safetensors")
    with pytest.raises(cw.CommonweightError, match="m1 has tie_word_embeddings, but its head is not its"):
        build(load({"method": "linear", "models": ["m0", "m1"]}))


def edit(path, **more):
    with open(path) as f:
        config = json.load(f)
    with open(path, "w") as f:
        json.dump({**config, **more}, f)


def test_what_is_refused(base):
    edit("a0/adapter_config.json", use_dora=True)
    with pytest.raises(cw.CommonweightError, match="the adapter has use_dora, which is not read"):
        build(load({"method": "ties", "base": "base", "models": ["a0"]}))
    edit("a0/adapter_config.json", use_dora=False, peft_type="VERA")
    with pytest.raises(cw.CommonweightError, match="an adapter of type VERA; LORA can be merged"):
        build(load({"method": "ties", "base": "base", "models": ["a0"]}))
    with pytest.raises(cw.CommonweightError, match=r"a1: an adapter; write MODEL\+a1"):
        build(load({"method": "linear", "models": ["a1"]}))
    wide = {**base, NAME: torch.ones(30, 9)}
    save_file(wide, "base/model.safetensors")
    with pytest.raises(cw.CommonweightError, match=r"adapts a weight of shape \(30, 8\), base .* has \(30, 9\)"):
        build(load({"method": "ties", "base": "base", "models": ["a1"]}))
    with open("base/config.json", "w") as f:
        json.dump({"quantization_config": {"quant_method": "bitsandbytes"}}, f)
    with pytest.raises(cw.CommonweightError, match=r"its weights are quantised by bitsandbytes \(without"):
        build(load({"method": "linear", "models": ["base"]}))
    with pytest.raises(cw.CommonweightError, match=r"base: has no tokenizer.json"):
        build(load({"method": "linear", "models": ["base"], "tokenizer": "union"}))
