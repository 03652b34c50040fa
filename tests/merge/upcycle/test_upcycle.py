"""Dense models as a mixture: it loads in transformers and is what its formula says."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
import yaml
from tokenizers import Tokenizer, models, pre_tokenizers
from torch.nn import functional as F
from typer.testing import CliRunner

import commonweight as cw
from commonweight.cli import app
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build

KINDS = {
    "llama": (tf.LlamaConfig, "mixtral"), "mistral": (tf.MistralConfig, "mixtral"),
    "qwen2": (tf.Qwen2Config, "qwen2_moe"), "qwen3": (tf.Qwen3Config, "qwen3_moe"),
}  # fmt: skip
IDS = torch.arange(4, 14).view(2, 5)
PROMPTS = ("w1 w2 w3", "w9 w8 w7", "w5 w20 w21")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """kind -> a folder with `base` and three models near it, `e0` to `e2`."""
    at = tmp_path_factory.mktemp("dense")
    raw = Tokenizer(models.WordLevel({"<unk>": 0, "<s>": 1, **{f"w{i}": i for i in range(2, 40)}}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words = tf.PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>", bos_token="<s>")
    for kind, (config, _) in KINDS.items():
        for i, name in enumerate(("base", "e0", "e1", "e2")):
            torch.manual_seed(0)
            size = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_key_value_heads": 1}
            model = tf.AutoModelForCausalLM.from_config(config(**size, num_hidden_layers=2, vocab_size=40, head_dim=8))
            torch.manual_seed(i)
            with torch.no_grad():
                for p in model.parameters() if i else ():
                    p.add_(0.1 * torch.randn(p.shape))
            model.save_pretrained(at / kind / name)
            words.save_pretrained(at / kind / name)
    return at


def recipe(kind: str, experts=("e0", "e1", "e2"), **more):
    found = [{"source_model": e, "positive_prompts": [p]} for e, p in zip(experts, PROMPTS)]
    shared = {"shared_experts": [{"source_model": "base", "residual_scale": 0.0}]} if kind == "qwen2" else {}
    return {"base_model": "base", "experts": found, **shared, **more}


def made(folders, kind, out, **more):
    (folders / kind / "recipe.yaml").write_text(yaml.safe_dump(recipe(kind, **more)))
    cw.merge.make(folders / kind / "recipe.yaml", out)
    return tf.AutoModelForCausalLM.from_pretrained(out).eval()


def dense(folders, kind, name="base"):
    return tf.AutoModelForCausalLM.from_pretrained(folders / kind / name).eval()


@pytest.mark.parametrize("kind", KINDS)
def test_equal_experts_are_the_dense_model_whatever_the_router_says(folders, kind, tmp_path):
    mixture = made(folders, kind, tmp_path / "m", experts=("base",) * 3, gate_mode="random", seed=3)
    assert mixture.config.model_type == KINDS[kind][1]
    with torch.no_grad():
        torch.testing.assert_close(mixture(IDS).logits, dense(folders, kind)(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_takes_the_experts_of_the_largest_gates(folders, kind, tmp_path):
    mixture = made(folders, kind, tmp_path / "m", gate_mode="hidden", experts_per_token=2)
    base, experts = dense(folders, kind), [dense(folders, kind, f"e{i}") for i in range(3)]
    routers = [m.weight for n, m in mixture.named_modules() if n.endswith(".gate")]

    def mixed(layer, i):
        def forward(x):
            scores = F.linear(x, routers[i])
            top, at = scores.topk(2, -1)
            share = torch.zeros_like(scores).scatter(-1, at, top.softmax(-1))
            return sum(share[..., e : e + 1] * experts[e].model.layers[i].mlp(x) for e in range(3))

        return forward

    with torch.no_grad():
        for i, layer in enumerate(base.model.layers):
            layer.mlp.forward = mixed(layer, i)
        torch.testing.assert_close(mixture(IDS).logits, base(IDS).logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("how", ["hidden", "hidden_last", "hidden_avg", "ffn", "cheap_embed"])
def test_gates_of_prompts(folders, how, tmp_path):
    kind, negative = "llama", ["w30 w31", "w32"]
    experts = recipe(kind)["experts"]
    experts[1]["negative_prompts"] = negative
    (folders / kind / "recipe.yaml").write_text(yaml.safe_dump({**recipe(kind), "experts": experts, "gate_mode": how}))
    cw.merge.make(folders / kind / "recipe.yaml", tmp_path / "m")
    mixture, base = tf.AutoModelForCausalLM.from_pretrained(tmp_path / "m"), dense(folders, kind)
    words = tf.AutoTokenizer.from_pretrained(folders / kind / "base")

    @torch.no_grad()
    def read(prompt, layer):
        ids = torch.tensor([[1, *words.convert_tokens_to_ids(prompt.split())]])
        states = base(ids, output_hidden_states=True).hidden_states
        if how == "cheap_embed":
            return states[0][0].sum(0)
        if how == "ffn":
            at = base.model.layers[layer]
            attended, *_ = at.self_attn(
                at.input_layernorm(states[layer]), attention_mask=None,
                position_embeddings=base.model.rotary_emb(states[0], torch.arange(ids.shape[1])[None]),
            )  # fmt: skip
            return at.post_attention_layernorm(states[layer] + attended)[0].mean(0)
        return states[layer][0].mean(0) if how == "hidden_avg" else states[layer][0, -1]

    for layer in range(2):
        gate = next(m for n, m in mixture.named_modules() if n.endswith(f"layers.{layer}.mlp.gate"))
        for e in range(3):
            want = read(PROMPTS[e], layer)
            if e == 1:
                want = want - torch.stack([read(p, layer) for p in negative]).mean(0)
            torch.testing.assert_close(gate.weight[e], want / want.norm(), rtol=1e-4, atol=1e-5)


def test_what_is_no_expert_is_the_bases_or_the_mean(folders, tmp_path):
    own = made(folders, "qwen3", tmp_path / "a", gate_mode="uniform_random").state_dict()
    mean = made(folders, "qwen3", tmp_path / "b", gate_mode="uniform_random", rest="mean", dtype="float16")
    several = [dense(folders, "qwen3", f"e{i}").state_dict() for i in range(3)]
    name, base = "model.layers.1.self_attn.q_proj.weight", dense(folders, "qwen3").state_dict()
    assert torch.equal(own[name], base[name]) and mean.dtype is torch.float16
    want = torch.stack([s[name] for s in several]).mean(0)
    torch.testing.assert_close(mean.state_dict()[name].float(), want, rtol=1e-3, atol=1e-4)
    gate = own["model.layers.0.mlp.gate.weight"]
    assert gate.shape == (3, 16) and gate.abs().max() <= 0.25 and gate.std() > 0.1


def test_a_tenant_is_an_expert(folders, tmp_path):
    host = cw.Host(dense(folders, "llama"))
    tenant = host.add("t", "lora", rank=2)
    with torch.no_grad():
        for p in tenant.parameters():
            p.normal_()
    host.save("t", folders / "llama" / "t.safetensors")
    mixture = made(folders, "llama", tmp_path / "m", experts=("base+t.safetensors", "base"), gate_mode="random")
    found = mixture.model.layers[1].mlp.experts.down_proj
    torch.testing.assert_close(found[0], host.merged("t")["model.layers.1.mlp.down_proj.weight"])
    assert torch.equal(found[1], dense(folders, "llama").model.layers[1].mlp.down_proj.weight)


def test_the_command(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(folders / "mistral")
    path = folders / "mistral" / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe("mistral", experts_per_token=1)))
    plan = CliRunner().invoke(app, ["merge", "recipe.yaml", "--plan"])
    assert plan.exit_code == 0, plan.output
    out = tmp_path / "m"
    for more in ([], ["--resume"]):
        got = CliRunner().invoke(app, ["merge", "recipe.yaml", "--out", str(out), *more])
        assert got.exit_code == 0, got.output
    assert "is finished" in got.output
    config = json.loads((out / "config.json").read_text())
    assert config["num_local_experts"] == 3 and config["num_experts_per_tok"] == 1
    assert (out / "tokenizer.json").is_file() and "mixture: e0 + e1 + e2" in (out / "README.md").read_text()


WRONG = {
    "base": ({"base_model": None}, "base_model is missing"),
    "gate": ({"gate_mode": "hiden"}, "hidden"),
    "one": ({"experts": [{"source_model": "e0"}]}, "experts is .* wanted a list of at least two"),
    "active": ({"experts_per_token": 4}, "there are 3 experts"),
    "prompts": ({"experts": [{"source_model": "e0"}, {"source_model": "e1"}]}, "positive_prompts are missing"),
    "same": ({"experts": [{"source_model": f"e{i}", "positive_prompts": ["a"]} for i in (0, 1)]}, "the same prompts"),
    "noise": ({"experts": [{"source_model": "e0", "noise_scale": 1}] * 2}, "noise_scale"),
    "shared": ({"shared_experts": [{"source_model": "e0"}]}, "leave shared_experts out"),
    "nowhere": ({"gate_mode": "random", "experts": [{"source_model": "e0"}, {"source_model": "e9"}]}, "e9"),
    "another kind": (
        {"gate_mode": "random", "experts": [{"source_model": "e0"}, {"source_model": "../qwen3/e0"}]}, "is a qwen3",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_makes_no_mixture(folders, case, monkeypatch):
    more, told = WRONG[case]
    monkeypatch.chdir(folders / "llama")
    with pytest.raises(cw.CommonweightError, match=told):
        build(load({**recipe("llama"), **more}))


def test_a_qwen2_needs_its_shared_expert_and_other_models_have_no_mixture(folders, monkeypatch, tmp_path):
    monkeypatch.chdir(folders / "qwen2")
    with pytest.raises(cw.CommonweightError, match="give shared_experts"):
        build(load({k: v for k, v in recipe("qwen2").items() if k != "shared_experts"}))
    tf.GPT2LMHeadModel(tf.GPT2Config(n_embd=8, n_layer=1, n_head=1, vocab_size=40)).save_pretrained(tmp_path / "g")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cw.CommonweightError, match="is a gpt2: no mixture is written of it"):
        build(load({**recipe("llama", experts=("g", "g", "g"), gate_mode="random"), "base_model": "g"}))


def test_a_bias_that_a_mixture_has_no_place_for(tmp_path, monkeypatch):
    size = {"hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1, "num_hidden_layers": 1}
    tf.LlamaForCausalLM(tf.LlamaConfig(**size, vocab_size=8, attention_bias=True)).save_pretrained(tmp_path / "b")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cw.CommonweightError, match="attention_bias"):
        build(load({**recipe("llama", experts=("b", "b", "b"), gate_mode="random"), "base_model": "b"}))
