"""LoRA on the experts of a mixture: files of transformers 4 and of target_parameters answer as in PEFT."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from safetensors.torch import save_file

import commonweight as cw
from commonweight.formats.peft import folder
from tests.laws.subjects import stir
from tests.models import VOCAB, answer, make

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCAB,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
IDS = {"input_ids": torch.randint(3, VOCAB, (4, 6), generator=torch.Generator().manual_seed(1))}


def qwen():
    return tf.Qwen3MoeForCausalLM(tf.Qwen3MoeConfig(
        intermediate_size=64, moe_intermediate_size=24, num_experts=4, num_experts_per_tok=2, head_dim=8, **SIZES
    ))  # fmt: skip


def mixtral():
    return tf.MixtralForCausalLM(
        tf.MixtralConfig(intermediate_size=64, num_local_experts=4, num_experts_per_tok=2, **SIZES)
    )


def gpt_oss():
    return tf.GptOssForCausalLM(tf.GptOssConfig(
        intermediate_size=48, num_local_experts=4, num_experts_per_tok=2, head_dim=8,
        layer_types=["full_attention"] * 2, **SIZES,
    ))  # fmt: skip


def llama4():
    return tf.Llama4ForCausalLM(tf.Llama4TextConfig(
        intermediate_size=24, intermediate_size_mlp=48, num_local_experts=4, num_experts_per_tok=1, head_dim=8,
        attention_chunk_size=32, **SIZES,
    ))  # fmt: skip


MODELS = {"qwen": qwen, "mixtral": mixtral, "gpt_oss": gpt_oss}


def model(kind):
    torch.manual_seed(0)
    made = MODELS[kind]().eval()
    with torch.no_grad():
        for n, p in made.named_parameters():
            if "experts" in n:
                p.normal_(0, 0.2)
    return made


def of_transformers_4(kind, at):
    """A layer per expert, as transformers 4 saved them."""
    names = {"qwen": ("mlp.experts.{}.gate_proj", "mlp.experts.{}.up_proj", "mlp.experts.{}.down_proj"),
             "mixtral": tuple(f"block_sparse_moe.experts.{{}}.w{i}" for i in (1, 3, 2))}[kind]  # fmt: skip
    m, g, t = {"qwen": 24, "mixtral": 64}[kind], torch.Generator().manual_seed(0), {}
    for layer in range(2):
        for e in range(4):
            for name, (out, inp) in zip(names, ((m, 32), (m, 32), (32, m))):
                key = f"base_model.model.model.layers.{layer}.{name.format(e)}"
                t[f"{key}.lora_A.weight"] = torch.randn(3, inp, generator=g) * 0.2
                t[f"{key}.lora_B.weight"] = torch.randn(out, 3, generator=g) * 0.2
    at.mkdir()
    save_file(t, at / folder.TENSORS)
    targets = [n.rpartition(".")[2] for n in names]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 3, "lora_alpha": 5, "target_modules": targets}
    (at / folder.CONFIG).write_text(json.dumps(config))
    return t


def by_peft(kind, at, config):
    wrapped = peft.get_peft_model(model(kind), config)
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for n, p in wrapped.named_parameters():
            if "lora_" in n:
                p.copy_(0.2 * torch.randn(p.shape, generator=g))
    wrapped.save_pretrained(at)


def there(kind, at):
    with torch.no_grad():
        return answer(peft.PeftModel.from_pretrained(model(kind), at).eval(), IDS)


def here(kind, at):
    host = cw.Host(model(kind))
    host.import_peft("x", at)
    with torch.no_grad():
        base = answer(host.model, IDS)
        with host.route("x"):
            got = answer(host.model, IDS)
    assert (got - base).abs().max() > 1e-3
    return host, got, base


@pytest.mark.parametrize("kind", ["qwen", "mixtral"])
def test_a_layer_for_each_expert(kind, tmp_path):
    of_transformers_4(kind, tmp_path / "a")
    _, got, _ = here(kind, tmp_path / "a")
    torch.testing.assert_close(got, there(kind, tmp_path / "a"), rtol=1e-5, atol=1e-5)


def test_what_the_factors_do_to_the_weights(tmp_path):
    """PEFT 0.21.2 reads nothing of such a file for qwen2_moe, without an error: so by hand, too."""
    t = of_transformers_4("qwen", tmp_path / "a")
    host, _, _ = here("qwen", tmp_path / "a")
    merged, at = host.merged("x"), "model.layers.1.mlp.experts"
    assert merged.keys() == {f"model.layers.{i}.mlp.experts.{n}" for i in (0, 1) for n in ("gate_up_proj", "down_proj")}
    for e in range(4):

        def change(name, e=e):
            key = f"base_model.model.{at}.{e}.{name}.lora_"
            return 5 / 3 * t[f"{key}B.weight"] @ t[f"{key}A.weight"]

        both = torch.cat([change("gate_proj"), change("up_proj")])
        for name, want in (("gate_up_proj", both), ("down_proj", change("down_proj"))):
            own = host.weight(f"{at}.{name}[{e}]")
            torch.testing.assert_close(merged[f"{at}.{name}"][e] - own, want, rtol=1e-4, atol=1e-5)


CONFIGS = {
    "both": lambda: peft.LoraConfig(
        r=3, lora_alpha=5, target_modules=["q_proj"],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
    ),
    "down": lambda: peft.LoraConfig(r=3, target_modules=[], target_parameters=["experts.down_proj"]),
    "rank": lambda: peft.LoraConfig(
        r=3, target_modules=[], target_parameters=["experts.gate_up_proj"], use_rslora=True,
        rank_pattern={"experts.gate_up_proj": 2}, alpha_pattern={"experts.gate_up_proj": 7},
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("name", CONFIGS)
def test_one_tensor_of_all_experts(name, kind, tmp_path):
    by_peft(kind, tmp_path / "a", CONFIGS[name]())
    _, got, _ = here(kind, tmp_path / "a")
    torch.testing.assert_close(got, there(kind, tmp_path / "a"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("targets", ["all-linear", ["gate"]])
def test_the_router_and_all_linear_layers(targets, tmp_path):
    by_peft("mixtral", tmp_path / "a", peft.LoraConfig(r=3, target_modules=targets))
    _, got, _ = here("mixtral", tmp_path / "a")
    torch.testing.assert_close(got, there("mixtral", tmp_path / "a"), rtol=1e-5, atol=1e-5)


def test_rows_of_a_mixed_batch_are_as_alone_and_a_file_brings_it_back(tmp_path):
    of_transformers_4("qwen", tmp_path / "a")
    host, got, base = here("qwen", tmp_path / "a")
    by_peft("qwen", tmp_path / "b", CONFIGS["both"]())
    host.import_peft("y", tmp_path / "b")
    with torch.no_grad():
        with host.route("y"):
            other = answer(host.model, IDS)
        with host.route(["x", "y", None, "x"]):
            mixed = answer(host.model, IDS)
        for row, want in enumerate((got, other, base, got)):
            torch.testing.assert_close(mixed[row], want[row], rtol=1e-5, atol=1e-5)
        numbers = torch.full((4, 6), host["x"].number)
        numbers[1] = -1
        with host.route(numbers):
            tokens = answer(host.model, IDS)
        torch.testing.assert_close(tokens[[0, 2, 3]], got[[0, 2, 3]], rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(tokens[1], base[1], rtol=1e-5, atol=1e-5)
        new = host.model.generate(IDS["input_ids"][:2, :3], max_new_tokens=4, do_sample=False)
        with host.route(["x", None]):
            two = host.model.generate(IDS["input_ids"][:2, :3], max_new_tokens=4, do_sample=False)
        assert torch.equal(two[1], new[1])
    again = cw.Host(model("qwen"))
    again.load("z", host.save("x", tmp_path / "x.safetensors"))
    with torch.no_grad(), again.route("z"):
        torch.testing.assert_close(answer(again.model, IDS), got, rtol=1e-6, atol=1e-6)
    plain = model("qwen")
    lost = plain.load_state_dict(host.merged("x"), strict=False)
    assert not lost.unexpected_keys
    with torch.no_grad():
        torch.testing.assert_close(answer(plain, IDS), got, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_factors(tmp_path):
    by_peft("mixtral", tmp_path / "a", CONFIGS["both"]())
    host, _, _ = here("mixtral", tmp_path / "a")
    with host.route("x"):
        answer(host.model, IDS).square().mean().backward()
    missing = [n for n, p in host["x"].named_parameters() if p.grad is None]
    assert not missing and any(p.grad.any() for n, p in host["x"].named_parameters() if "down_proj[" in n)


def test_experts_by_a_pattern_and_by_a_function():
    host = cw.Host(model("qwen"))
    kinds = {"linear", "norm", "block", "expert", "router", "attention", "ffn", "trunk", "queries"}
    assert {s.kind for s in host.sites} == kinds | {"prompt", "positions", "prefix", "aside"}
    every = host.add("all", "lora", rank=2)
    assert sum("experts" in u.site for u in every.plan.uses) == 16
    assert not any(u.site.endswith("gate") for u in every.plan.uses)
    assert len(host.add("gates", "lora", rank=2, sites="*.mlp.gate").plan.uses) == 2
    t = host.add("t", "lora", rank=2, sites="*.experts.down_proj")
    assert len(t.plan.uses) == 8 and t.plan.uses[0].site == "model.layers.0.mlp.experts.down_proj[0]"
    some = host.add("u", "lora", rank=2, sites=lambda name, module: hasattr(module, "down_proj") and "down" in name)
    assert [u.site for u in some.plan.uses] == [u.site for u in t.plan.uses]


def test_what_is_no_change_of_a_weight_works_on_experts_and_is_named_on_routers():
    host = cw.Host(model("qwen"))
    host.add("t", "bottleneck", sites="*.experts.down_proj")
    host.add("u", "bottleneck", sites="*.gate")
    with host.route("t"):
        answer(host.model, IDS)
    with pytest.raises(cw.CommonweightError, match=r"mlp.gate.*: Bottleneck does not change a weight"):
        with host.route("u"):
            host.model(**IDS)


def test_what_fits_no_expert_is_named(tmp_path):
    tensors = of_transformers_4("qwen", tmp_path / "a")
    host = cw.Host(model("qwen"))
    key = "base_model.model.model.layers.0.mlp.experts.{}.gate_proj.lora_{}.weight"

    def refused(says, **change):
        save_file({**tensors, **change}, tmp_path / "a" / folder.TENSORS)
        with pytest.raises(cw.CommonweightError, match=says):
            host.import_peft("x", tmp_path / "a")

    more = {key.format(9, f): tensors[key.format(0, f)].clone() for f in "AB"}
    refused(r"expert 9 of model.layers.0.mlp.experts.gate_up_proj: this base has 4", **more)
    refused(r"experts.0: adapts a weight of \(24, 30\), .* wants \(24, 32\)", **{key.format(0, "A"): torch.ones(3, 30)})
    refused(r"\(2, 32\), its B is \(24, 3\)", **{key.format(0, "A"): torch.ones(2, 32)})
    four = {key.format(0, f): t for f, t in (("A", torch.ones(4, 32)), ("B", torch.ones(24, 4)))}
    refused("experts.0.gate_proj: its factors are of rank 4, adapter_config.json says 3", **four)
    save_file({k: v for k, v in tensors.items() if k != key.format(0, "B")}, tmp_path / "a" / folder.TENSORS)
    with pytest.raises(cw.CommonweightError, match=r"experts.0.gate_proj has no lora_B.weight"):
        host.import_peft("x", tmp_path / "a")
    with pytest.raises(cw.CommonweightError, match="made for another model"):
        cw.Host(make("llama")[0]).import_peft("x", tmp_path / "a")
    of_transformers_4("mixtral", tmp_path / "b")
    with pytest.raises(cw.CommonweightError, match="the base wants"):
        host.import_peft("x", tmp_path / "b")


@pytest.mark.parametrize("kind", [*MODELS, "llama4"])
def test_a_folder_that_is_written_answers_as_in_peft_and_comes_back(kind, tmp_path, monkeypatch):
    monkeypatch.setitem(MODELS, "llama4", llama4)
    host = cw.Host(model(kind))
    router = {"gpt_oss": "*.router", "llama4": "*.k_proj"}.get(kind, "*.mlp.gate")
    stir(host.add("all", "lora", rank=2, sites=f"*.q_proj|*.experts.*|{router}"))
    stir(host.add("some", "lora", rank=3, sites="*.layers.1.*.experts.down_proj[1]|*.layers.0.*experts.gate_up_proj"))
    stir(host.add("dora", "dora", rank=2, sites="*.layers.1.*.experts.down_proj"))
    for name, options in (("all", {}), ("some", {}), ("dora", {"tolerance": 1e-5})):
        at = host.export_peft(name, tmp_path / name, **options)
        with torch.no_grad(), host.route(name):
            want = answer(host.model, IDS)
        torch.testing.assert_close(there(kind, at), want, rtol=1e-4, atol=1e-5)
        _, again, _ = here(kind, at)
        torch.testing.assert_close(again, want, rtol=1e-4, atol=1e-5)
        known = json.loads((at / folder.CONFIG).read_text())
        assert known["target_parameters"] and known["lora_dropout"] == 0.0


def deepseek():
    return tf.DeepseekV3ForCausalLM(tf.DeepseekV3Config(
        intermediate_size=64, moe_intermediate_size=24, n_routed_experts=4, num_experts_per_tok=2, n_group=2,
        topk_group=1, first_k_dense_replace=1, q_lora_rank=16, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8,
        v_head_dim=8, **{**SIZES, "num_key_value_heads": 4},
    ))  # fmt: skip


@pytest.mark.parametrize("sites", ["*.gate_proj|*.mlp.down_proj|*.q_b_proj", "language|embeddings|heads"])
def test_shared_experts_dense_layers_and_tables_beside_experts(sites, monkeypatch, tmp_path):
    """PEFT takes any `gate_proj` of target_modules for a part of the experts in such a model."""
    monkeypatch.setitem(MODELS, "deepseek", deepseek)
    host = cw.Host(model("deepseek"))
    stir(host.add("t", "lora", rank=6, sites=sites))  # more than the router's four rows
    at = host.export_peft("t", tmp_path / "t")
    with torch.no_grad(), host.route("t"):
        want = answer(host.model, IDS)
    torch.testing.assert_close(there("deepseek", at), want, rtol=1e-4, atol=1e-5)
    _, again, _ = here("deepseek", at)
    torch.testing.assert_close(again, want, rtol=1e-4, atol=1e-5)


def test_what_peft_cannot_say_of_experts_is_refused(tmp_path):
    host = cw.Host(model("gpt_oss"))
    stir(host.add("biases", "bitfit", sites="*.experts.*"))
    with pytest.raises(cw.CommonweightError, match=r"experts.gate_up_proj: bitfit changes its bias, for which PEFT"):
        host.export_peft("biases", tmp_path / "a")
    with pytest.raises(cw.CommonweightError, match=r"is not written for experts and routers"):
        host.export_peft("biases", tmp_path / "a", native=True)
    assert not (tmp_path / "a").exists()
