"""LoRA out of a full model: exact where the change is of low rank, errors as stated, read by us and by PEFT."""

from __future__ import annotations

import json
import math
from fnmatch import fnmatchcase

import pytest
import torch
import transformers as tf
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


SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=61)


def qwen_moe():
    return tf.Qwen2MoeForCausalLM(
        tf.Qwen2MoeConfig(
            **SMALL, intermediate_size=64, moe_intermediate_size=16, shared_expert_intermediate_size=24, num_experts=4,
            num_experts_per_tok=2,
        )
    )  # fmt: skip


def gpt2_classifier():
    sizes = dict(n_embd=32, n_layer=2, n_head=4, vocab_size=61, n_positions=32, num_labels=3)
    return tf.GPT2ForSequenceClassification(tf.GPT2Config(**sizes, pad_token_id=0, bos_token_id=1, eos_token_id=2))


KINDS = {
    "t5": (lambda: make("t5")[0], ["*shared*", "*relative_attention_bias*", "*norm*"]),
    "qwen_moe": (qwen_moe, ["*experts.*", "*mlp.gate.*", "*norm*", "*embed*", "*bias"]),
    "mixtral": (lambda: make("moe")[0], ["*experts.*", "*.gate.*", "*norm*", "*embed*"]),
    "gpt2_classifier": (gpt2_classifier, ["*wte*", "*wpe*", "*ln_*", "*bias"]),
    "bert": (lambda: make("bert")[0], ["*embeddings*", "*LayerNorm*", "*bias"]),
}


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning")
@pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to:UserWarning")
@pytest.mark.parametrize("held", ["folders", "modules", "files"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_total_error_is_that_of_the_model_that_peft_makes(kind, held, tmp_path):
    """Everything of the model is moved: what no adapter can say is left out and lost; the rest PEFT applies."""
    peft = pytest.importorskip("peft")
    make_it, left_out = KINDS[kind]
    torch.manual_seed(0)
    base, full = make_it(), make_it()
    full.load_state_dict(base.state_dict())
    with torch.no_grad():
        for p in full.parameters():
            p.add_(0.02 * torch.randn(p.shape))
    base.save_pretrained(tmp_path / "base")
    full.save_pretrained(tmp_path / "full")
    given = (full, base) if held == "modules" else (tmp_path / "full", tmp_path / "base")
    if held == "files":
        given = (tmp_path / "full" / "model.safetensors", tmp_path / "base" / "model.safetensors")
    found = cw.merge.extract(*given, tmp_path / "lora", rank=4)
    assert not found.notices
    for glob in left_out:
        assert any(fnmatchcase(n, glob) for n in found.left_out), (glob, sorted(found.left_out))
    assert all(any(fnmatchcase(n, glob) for glob in left_out) for n in found.left_out)
    goal, start = ({n: p.detach().clone() for n, p in m.named_parameters()} for m in (full, base))
    merged = peft.PeftModel.from_pretrained(base, tmp_path / "lora").merge_and_unload()
    got = dict(merged.named_parameters())
    lost, whole = (
        math.sqrt(sum((goal[n] - there[n]).double().square().sum().item() for n in goal)) for there in (got, start)
    )
    assert found.total == pytest.approx(lost / whole, rel=1e-4)
    for module, error in found.errors.items():
        at = f"{module}.weight"
        assert error == pytest.approx(
            ((goal[at] - got[at]).norm() / (goal[at] - start[at]).norm()).item(), rel=1e-3, abs=1e-6
        )


def test_names_are_those_of_the_configs_architecture(tmp_path):
    """A file of the body alone, whose config names the model around it, as GPT-2's own."""
    base, full = make("gpt2", seed=0)[0], make("gpt2", seed=1)[0]
    for name, model in (("base", base), ("full", full)):
        model.save_pretrained(tmp_path / name)
        tensors = load_file(tmp_path / name / "model.safetensors")
        save_file(
            {n.removeprefix("transformer."): t for n, t in tensors.items()}, tmp_path / name / "model.safetensors"
        )
    found = cw.merge.extract(tmp_path / "full", tmp_path / "base", tmp_path / "lora", rank=2)
    assert "transformer.h.0.attn.c_attn" in found.ranks and len(found.ranks) == 8
    host = cw.Host(base)
    host.import_peft("x", tmp_path / "lora")
    assert len(host.merged("x")) == 8


def test_a_recipe_reads_what_was_extracted_from_files_of_the_body(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base, full = make("llama", seed=0)[0], make("llama", seed=1)[0]
    for name, model in (("base", base), ("full", full)):
        model.save_pretrained(name)
        tensors = load_file(f"{name}/model.safetensors")
        save_file({n.removeprefix("model."): t for n, t in tensors.items()}, f"{name}/model.safetensors")
    found = cw.merge.extract("full", "base", "lora", rank=32)
    assert "model.layers.0.self_attn.q_proj" in found.ranks and "lm_head" in found.ranks
    done = cw.merge.make({"method": "linear", "models": ["base+lora"]}, "out")
    merged, goal = load_file(done.folder / "model.safetensors"), load_file("full/model.safetensors")
    torch.testing.assert_close(merged["layers.0.self_attn.q_proj.weight"], goal["layers.0.self_attn.q_proj.weight"])


def test_without_a_config_names_tell_and_that_is_said(tmp_path, capsys):
    pair("llama", 3, tmp_path)
    found = cw.merge.extract(tmp_path / "full", tmp_path / "base", tmp_path / "lora", rank=3)
    assert found.notices == ("there is no config.json: which matrices are linear layers is told by their names",)
    (tmp_path / "base" / "config.json").write_text('{"model_type": "unheard", "architectures": ["Unheard"]}')
    found = cw.merge.extract(tmp_path / "full", tmp_path / "base", tmp_path / "other", rank=3)
    assert found.total < 1e-5 and "base/config.json makes no model here" in found.notices[0]
    assert json.loads((tmp_path / "other" / "report.json").read_text())["notices"] == list(found.notices)
    with pytest.raises(SystemExit):
        main(["extract", *(str(tmp_path / n) for n in ("full",)), "--base", str(tmp_path / "base"), "--out",
              str(tmp_path / "third")])  # fmt: skip
    assert "notice: base/config.json makes no model here" in capsys.readouterr().err


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
        (
            {"sites": "nothing*"},
            r"no linear layer at 'nothing\*' differs from base's; what does .* asked for: a.weight$",
        ),
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
        (base, "no linear layer at '\\*' differs from base's$"),
    ]:
        with pytest.raises(cw.CommonweightError, match=what):
            cw.merge.extract(model, base, tmp_path / "x")


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pair("llama", 3, tmp_path)
    with pytest.raises(SystemExit) as done:
        main(["extract", "full", "--base", "base", "--rank", "4", "--rank-at", "*.q_proj=3", "--out", "lora"])
    assert not done.value.code and "14 modules, rank 3 to 4" in capsys.readouterr().out
    again = ["extract", "full", "--base", "base", "--rank", "2", "--out", "lora"]
    with pytest.raises(SystemExit) as done:
        main(again)
    assert done.value.code == 2 and "lora already exists; choose another name, or replace" in capsys.readouterr().err
    with pytest.raises(SystemExit) as done:
        main([*again, "--overwrite"])
    assert not done.value.code and "14 modules, rank 2" in capsys.readouterr().out
    for args, what in [(["full", "--rank-at", "x"], "wanted a glob"), (["none"], "none: no such file")]:
        with pytest.raises(SystemExit) as done:
            main(["extract", *args, "--base", "base", "--out", "other"])
        assert done.value.code == 2 and what in capsys.readouterr().err


def test_layers_of_the_model_that_the_files_call_otherwise(tmp_path):
    """As LLaVA's language model, whose modules have other names than its tensors in files."""
    model = make("llama")[0]
    state = {n: t.clone() for n, t in model.state_dict().items()}
    linear = {f"{s.name}.weight" for s in cw.Host(make("llama")[0]).sites if s.kind == "linear"}

    def moved(part):
        base = {n.replace(part, "elsewhere."): t for n, t in state.items()}
        return {n: t + 0.1 if t.ndim == 2 else t for n, t in base.items()}, base

    full, base = moved("model.layers.0.")
    for n, tensors in (("base", base), ("full", full)):
        (tmp_path / n).mkdir()
        save_file(tensors, tmp_path / n / "model.safetensors")
        model.config.save_pretrained(tmp_path / n)
    found = cw.merge.extract(tmp_path / "full", tmp_path / "base", tmp_path / "a", rank=2)
    gone = sum(n.startswith("model.layers.0.") for n in linear)
    assert 0 < gone < len(linear) and not any("layers.0" in n for n in found.ranks)
    assert found.notices[0].startswith(
        f"{gone} of {len(linear)} linear layers of the model have no tensor of their name in"
    )
    assert json.loads((tmp_path / "a" / "report.json").read_text())["notices"] == list(found.notices)
    for n, tensors in zip(("full", "base"), (full, base)):
        save_file({f"x{i}": t for i, t in enumerate(tensors.values())}, tmp_path / n / "model.safetensors")
    with pytest.raises(
        cw.CommonweightError, match=rf"no tensor is a linear layer of Llama.*, which has {len(linear)}, "
    ):
        cw.merge.extract(tmp_path / "full", tmp_path / "base", tmp_path / "b", rank=2)
    assert not (tmp_path / "b").exists()
