"""What PEFT can be asked for, on several models: saved by it, then the same answers here or a refusal by name."""

from __future__ import annotations

import json
import re
import warnings

import pytest
import torch
from safetensors.torch import save_file

import commonweight as cw
from commonweight.formats.peft import folder
from tests.models import answer, make

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

SOME = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bert": ["query", "value", "output.dense"],
    "t5": ["q", "v", "wo"],
    "moe": ["q_proj", "v_proj"],
}
WITH_HEAD = ("llama", "gpt2", "t5", "moe")
EMBEDDING = {"llama": "embed_tokens", "gpt2": "wte", "bert": "word_embeddings", "t5": "shared", "moe": "embed_tokens"}


def lora(kind, **options):
    return peft.LoraConfig(**{"r": 4, "lora_alpha": 6, "target_modules": SOME[kind], **options})


def saved(kind, config, at, std=0.1):
    """(their answer after loading it again, the batch, the base's answer)."""
    model, batch = make(kind)
    base = answer(model, batch).detach()
    model = peft.get_peft_model(model, config).eval()
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(std * torch.randn(p.shape, generator=g))
    model.save_pretrained(at)
    there = peft.PeftModel.from_pretrained(make(kind)[0], at).eval()
    with torch.no_grad():
        return answer(there, batch), batch, base


READ = {
    "exclude": lambda k: lora(k, target_modules="all-linear", exclude_modules=[SOME[k][0]]),
    "rslora-patterns": lambda k: lora(
        k, use_rslora=True, rank_pattern={SOME[k][0]: 2}, alpha_pattern={f"^.*{SOME[k][1]}": 3}
    ),
    "one-layer": lambda k: lora(k, layers_to_transform=1),
    "fan-in-fan-out": lambda k: lora(k, fan_in_fan_out=True),
    "head": lambda k: lora(k, target_modules=[*SOME[k], "lm_head"]),
    "whole-embedding": lambda k: lora(k, modules_to_save=[EMBEDDING[k]]),
    "tokens": lambda k: lora(k, trainable_token_indices=[5]),
    "bias-all": lambda k: lora(k, bias="all"),
    "bias-lora-only": lambda k: lora(k, bias="lora_only"),
    "lora-bias": lambda k: lora(k, lora_bias=True),
    "eva": lambda k: lora(k, init_lora_weights="eva"),
    "olora": lambda k: lora(k, init_lora_weights="olora"),
    "orthogonal": lambda k: lora(k, init_lora_weights="orthogonal"),
    "gaussian": lambda k: lora(k, init_lora_weights="gaussian"),
    "mica": lambda k: lora(k, init_lora_weights="mica"),
    "pissa-dora": lambda k: lora(k, init_lora_weights="pissa", use_dora=True),
    "dora-rslora": lambda k: lora(k, use_dora=True, use_rslora=True, rank_pattern={SOME[k][0]: 2}),
    "velora": lambda k: lora(k, velora_config=peft.tuners.lora.config.VeloraConfig()),
    "monteclora": lambda k: lora(k, monteclora_config=peft.tuners.lora.config.MontecloraConfig()),
    "ia3-defaults": lambda k: peft.IA3Config(),
    "loha": lambda k: peft.LoHaConfig(target_modules=SOME[k]),
    "adalora": lambda k: peft.AdaLoraConfig(target_modules=SOME[k], total_step=9),
    "oft-bias": lambda k: peft.OFTConfig(r=0, oft_block_size=8, target_modules=SOME[k], bias="all"),
}  # fmt: skip
NO = {
    "bert": {"head"},
    "gpt2": {"olora", "oft-bias", "loha"},
    "moe": {"exclude"},
}  # what PEFT cannot do there, or (experts) what other tests look at
UNTRAINED = {"oft-bias": ("bert",)}  # its biases are trained, which is refused: see below


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("name", READ)
def test_read_as_peft_reads_it(name, kind, tmp_path):
    if name in NO.get(kind, ()) or kind in UNTRAINED.get(name, ()):
        pytest.skip("not there")
    if name == "lora-bias" and kind not in ("bert", "gpt2"):
        pytest.skip("its layers have no biases: see below")
    want, batch, base = saved(kind, READ[name](kind), tmp_path / "a")
    host = cw.Host(make(kind)[0])
    host.import_peft("x", tmp_path / "a")
    with torch.no_grad(), host.route("x"):
        got = answer(host.model, batch)
    assert (want - base).abs().max() > 1e-4, "the adapter does nothing"
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def test_a_parameter_as_a_target(tmp_path):
    config = peft.LoraConfig(r=4, target_modules=[], target_parameters=["self_attn.q_proj.weight"])
    want, batch, _ = saved("llama", config, tmp_path / "a")
    host = cw.Host(make("llama")[0])
    host.import_peft("x", tmp_path / "a")
    with torch.no_grad(), host.route("x"):
        torch.testing.assert_close(answer(host.model, batch), want, rtol=1e-5, atol=1e-5)


def test_a_parameter_that_lies_the_other_way(tmp_path):
    """GPT-2's c_proj is square: read the wrong way round it would fit, and be wrong."""
    config = peft.LoraConfig(r=4, target_modules=["nothing"], target_parameters=["attn.c_proj.weight"])
    want, batch, base = saved("gpt2", config, tmp_path / "a")
    host = cw.Host(make("gpt2")[0])
    host.import_peft("x", tmp_path / "a")
    with torch.no_grad(), host.route("x"):
        torch.testing.assert_close(answer(host.model, batch), want, rtol=1e-5, atol=1e-5)
    assert (want - base).abs().max() > 1e-4


def test_a_head_that_is_its_embedding(tmp_path):
    """Tied weights: PEFT saves a copy of the base's matrix beside the factors."""
    import transformers as tf

    def tied():
        torch.manual_seed(0)
        return tf.LlamaForCausalLM(tf.LlamaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=61,
            tie_word_embeddings=True,
        )).eval()  # fmt: skip

    model = peft.get_peft_model(tied(), lora("llama", target_modules=["q_proj", "lm_head"])).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_B" in n:
                p.add_(0.1)
        want = model(**make("llama")[1]).logits
    model.save_pretrained(tmp_path / "a")
    host = cw.Host(tied())
    host.import_peft("x", tmp_path / "a")
    with torch.no_grad(), host.route("x"):
        torch.testing.assert_close(host.model(**make("llama")[1]).logits, want, rtol=1e-5, atol=1e-5)
    other = tied()
    with torch.no_grad():
        other.lm_head.weight.add_(0.1)
    with pytest.raises(cw.CommonweightError, match=r"lm_head.base_layer.weight: a parameter .* other than this base's"):
        cw.Host(other).import_peft("x", tmp_path / "a")
    half = cw.Host(tied().bfloat16())
    half.import_peft("x", tmp_path / "a")


def test_whole_modules_that_were_not_trained_say_nothing(tmp_path):
    model = peft.get_peft_model(make("llama")[0], lora("llama", modules_to_save=["lm_head", "norm"]))
    model.save_pretrained(tmp_path / "a")
    cw.Host(make("llama")[0]).import_peft("x", tmp_path / "a")


REFUSED = {
    "qalora": (lambda k: lora(k, use_qalora=True), "QA-LoRA averages groups"),
    "pissa-niter": (lambda k: lora(k, init_lora_weights="pissa_niter_4"), "moved the base weights"),
}  # fmt: skip
WORKS = "merge_and_unload|save_as_lora|Serve it with PEFT|path_initial_model"


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name_with_what_works(name, kind, tmp_path):
    config, says = REFUSED[name]
    saved(kind, config(kind), tmp_path / "a")
    host = cw.Host(make(kind)[0])
    with pytest.raises(cw.CommonweightError, match=says) as e:
        host.import_peft("x", tmp_path / "a")
    assert str(e.value).startswith(str(tmp_path / "a")) and re.search(WORKS, str(e.value))
    assert not len(host)


@pytest.mark.parametrize(
    ("kind", "options", "says"),
    [
        ("llama", {"lora_bias": True}, "lora_B.bias: the layer has no bias that it could change .* Serve it with PEFT"),
        ("llama", {"layer_replication": [(0, 2), (0, 2)]}, "layers of the base were copied"),
    ],
)
def test_refused_on_some_models(kind, options, says, tmp_path):
    saved(kind, lora(kind, **options), tmp_path / "a")
    with pytest.raises(cw.CommonweightError, match=says):
        cw.Host(make(kind)[0]).import_peft("x", tmp_path / "a")


def test_prompts_of_several_tasks_are_no_change_of_weights(tmp_path):
    config = peft.MultitaskPromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, num_tasks=2)
    peft.get_peft_model(make("llama")[0], config).save_pretrained(tmp_path / "a")
    with pytest.raises(cw.CommonweightError, match=r"no change of weights. Serve it with PEFT, or train one of"):
        cw.Host(make("llama")[0]).import_peft("x", tmp_path / "a")


def test_peft_s_own_conversion_is_read(tmp_path):
    """What the refusal of LoHa advises."""
    model, batch = make("llama")
    model = peft.get_peft_model(model, peft.LoHaConfig(r=2, target_modules=SOME["llama"])).eval()
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "hada" in n:
                p.add_(0.1)
        want = answer(model, batch)
        peft.save_as_lora(tmp_path / "a", model, rank=4)
    host = cw.Host(make("llama")[0])
    host.import_peft("x", tmp_path / "a")
    with torch.no_grad(), host.route("x"):
        torch.testing.assert_close(answer(host.model, batch), want, rtol=1e-4, atol=1e-4)


def test_second_adapter_lies_inside_the_first(tmp_path):
    from commonweight.commons.adapters import adapters

    model = peft.get_peft_model(make("llama")[0], lora("llama"))
    model.add_adapter("second", lora("llama", r=2))
    model.save_pretrained(tmp_path / "both")
    found = adapters([tmp_path / "both"])
    assert sorted(found) == ["both", "second"]
    host = cw.Host(make("llama")[0])
    assert [host.import_peft(n, f).config.rank for n, f in sorted(found.items())] == [4, 2]


def test_a_compiled_model_s_adapter_is_the_plain_one_s(tmp_path):
    wrapped = peft.get_peft_model(torch.compile(make("llama")[0]), lora("llama", target_modules=["q_proj"]))
    wrapped.save_pretrained(tmp_path / "a")
    assert cw.Host(make("llama")[0]).import_peft("x", tmp_path / "a").config.rank == 4


def test_a_head_over_tokens_is_no_classifier_of_texts(tmp_path):
    import transformers as tf

    config = tf.BertConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                           vocab_size=61, num_labels=3)  # fmt: skip
    for task in ("TOKEN_CLS", None):
        model = peft.get_peft_model(
            tf.BertForTokenClassification(config),
            peft.LoraConfig(r=2, target_modules=["query"], task_type=task, modules_to_save=["classifier"]),
        )
        model.save_pretrained(tmp_path / str(task))
        host = cw.Host(cw.Classifier(make("bert")[0]))
        with pytest.raises(cw.CommonweightError, match=r"scores each token .* give labels=\(\)"):
            host.import_peft("x", tmp_path / str(task), labels=["O", "B", "I"])
        assert host.import_peft("x", tmp_path / str(task), labels=()).labels is None


def test_our_folder_saved_again_by_peft_has_no_digests(tmp_path):
    """PEFT reads past them; what it writes elsewhere is its own, and in place it is told."""
    host = cw.Host(make("llama")[0])
    host.add("t", "lora", rank=2)
    host.export_peft("t", tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        there = peft.PeftModel.from_pretrained(make("llama")[0], tmp_path / "a")
    there.save_pretrained(tmp_path / "b")
    host.import_peft("b", tmp_path / "b")
    there.save_pretrained(tmp_path / "a")
    assert json.loads((tmp_path / "a" / folder.REPORT).read_text())["native"]
    with pytest.raises(cw.CommonweightError, match="not as commonweight wrote it"):
        host.import_peft("a", tmp_path / "a")


def test_a_resized_vocabulary_and_a_base_without_its_head(tmp_path):
    model = make("llama")[0]
    model.resize_token_embeddings(66)
    wrapped = peft.get_peft_model(model, lora("llama"))
    wrapped.save_pretrained(tmp_path / "a", save_embedding_layers=True)
    host = cw.Host(make("llama")[0])
    assert host.import_peft("x", tmp_path / "a").vocabulary == 66
    other = make("llama", seed=1)[0]
    with pytest.raises(cw.CommonweightError, match=r"embed_tokens\.weight: embeddings"):
        cw.Host(other).import_peft("x", tmp_path / "a")
    saved("llama", lora("llama", target_modules=["q_proj", "lm_head"]), tmp_path / "b")
    with pytest.raises(cw.CommonweightError, match="this base has no lm_head, on which the adapter lies"):
        cw.Host(make("llama")[0].model).import_peft("x", tmp_path / "b")


def test_a_state_of_dora_that_was_saved_by_hand(tmp_path):
    wrapped = peft.get_peft_model(make("llama")[0], lora("llama", use_dora=True))
    wrapped.save_pretrained(tmp_path / "a")
    state = {k: v.contiguous() for k, v in wrapped.state_dict().items() if ".lora_" in k}
    save_file(state, tmp_path / "a" / folder.TENSORS)
    assert any("lora_magnitude_vector.default.weight" in k for k in state)
    host = cw.Host(make("llama")[0])
    assert host.import_peft("x", tmp_path / "a" / folder.TENSORS).method.name == "dora"
