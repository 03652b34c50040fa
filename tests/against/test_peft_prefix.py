"""Prefixes and prompts against PEFT: its files both ways, in decoders and encoders, with padding and with heads."""

import copy
import json

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.host import kinds
from tests.host.kinds import made
from tests.host.test_further import encoder, rows
from tests.host.test_moved import paired
from tests.laws.subjects import stir
from tests.models import VOCAB, answer, make

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

DECODERS = "llama", "qwen", "gpt2", "moe"


def theirs(model, folder, task="CAUSAL_LM", **options):
    """PEFT's model with a prefix of 5, saved."""
    torch.manual_seed(3)
    config = peft.PrefixTuningConfig(task_type=task, num_virtual_tokens=5, **options)
    model = peft.get_peft_model(copy.deepcopy(model), config).eval()
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", DECODERS)
def test_what_peft_saved_answers_the_same_here(kind, attention, tmp_path):
    model, batch = make(kind)
    model.set_attn_implementation(attention)
    base = answer(model, batch)
    mask = torch.ones_like(batch["input_ids"])
    mask[1, :2] = 0
    batch["attention_mask"] = mask
    there = theirs(model, tmp_path / "a")
    host = cw.Host(model)
    tenant = host.import_peft("t", tmp_path / "a")
    if kind != "gpt2":  # without ids PEFT counts padding; here GPT-2 alone does, as in transformers
        batch["position_ids"] = (mask.cumsum(1) - 1).clamp(min=0)
    with torch.no_grad():
        want = there(**batch).logits
        with host.route(["t"] * 4):
            got = answer(model, batch)
    assert tenant.method.name == "prefix-tuning" and (want - base)[0].abs().max() > 1e-3
    torch.testing.assert_close(got[mask.bool()], want[mask.bool()], rtol=1e-5, atol=1e-6)


def test_a_file_whose_keys_came_from_a_network(tmp_path):
    model, batch = make("llama")
    there = theirs(model, tmp_path / "a", prefix_projection=True, encoder_hidden_size=12)
    want = there(**batch, attention_mask=torch.ones_like(batch["input_ids"])).logits
    host = cw.Host(model)
    host.import_peft("t", tmp_path / "a")
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), want, rtol=1e-5, atol=1e-6)


def classifier(name):
    config = getattr(tf, f"{name}Config")(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB,
        max_position_embeddings=40, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return getattr(tf, f"{name}ForSequenceClassification")(config).eval(), make("llama")[1]


@pytest.mark.parametrize("name", ["Bert", "Roberta"])
def test_an_encoder_padded_on_the_right(name, tmp_path):
    model, batch = classifier(name)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][1, 4:] = 0
    want = theirs(model, tmp_path / "a", "SEQ_CLS")(**batch).logits
    host = cw.Host(model)
    host.import_peft("t", tmp_path / "a", labels=())
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [{}, {"projection": 6}])
@pytest.mark.parametrize("kind", DECODERS)
def test_native_export_answers_the_same_in_peft_and_comes_back(kind, options, tmp_path):
    model, batch = make(kind)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    stir(host.add("t", "prefix-tuning", tokens=5, **options))
    host.export_peft("t", tmp_path / "a", native=True)
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
    host.import_peft("u", tmp_path / "a")
    there = peft.PeftModel.from_pretrained(plain, tmp_path / "a").eval()
    with torch.no_grad():
        with host.route("u"):
            torch.testing.assert_close(answer(model, batch), want, rtol=1e-5, atol=1e-6)
        got = there(**batch, attention_mask=torch.ones_like(batch["input_ids"])).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("layers", [2, 3])
def test_an_encoder_decoder_has_it_in_the_decoder(layers, tmp_path):
    """PEFT gives a layer the halves 4 i and 4 i + 1 modulo 2 L; of two layers both have the first."""
    model, batch = paired(layers=layers)
    there = theirs(model, tmp_path / "a", "SEQ_2_SEQ_LM")
    with torch.no_grad():
        want = there(**batch).logits
    host = cw.Host(model)
    tenant = host.import_peft("t", tmp_path / "a")
    assert all(".decoder." in u.site for u in tenant.plan.uses) and len(tenant.plan.uses) == layers
    with torch.no_grad(), host.route(["t", None, "t", "t"]):
        got = model(**batch).logits
    torch.testing.assert_close(got[[0, 2, 3]], want[[0, 2, 3]], rtol=1e-5, atol=1e-6)
    host.export_peft("t", tmp_path / "b", native=True)
    again = peft.PeftModel.from_pretrained(paired(layers=layers)[0], tmp_path / "b").eval()
    with torch.no_grad():
        torch.testing.assert_close(again(**batch).logits, want, rtol=1e-5, atol=1e-6)


def test_what_peft_cannot_say_is_refused(tmp_path):
    host = cw.Host(make("llama")[0])
    host.add("part", "prefix-tuning", tokens=2, sites="*.0.self_attn.prefix")
    with pytest.raises(cw.CommonweightError, match="stands in every attention, and the tenant leaves"):
        host.export_peft("part", tmp_path / "a", native=True)
    with pytest.raises(cw.CommonweightError, match="changes a prefix, which LoRA cannot express"):
        host.export_peft("part", tmp_path / "a")
    both = cw.Host(paired()[0])
    both.add("t", "prefix-tuning", tokens=2)
    with pytest.raises(cw.CommonweightError, match="stands in the decoder's attention to itself alone"):
        both.export_peft("t", tmp_path / "a", native=True)
    both.add("d", "prefix-tuning", tokens=2, sites="*.decoder.*.prefix")
    with pytest.raises(cw.CommonweightError, match="layers 0 and 1 of a decoder of 2 layers one prefix"):
        both.export_peft("d", tmp_path / "a", native=True)
    t5 = cw.Host(make("t5")[0])
    t5.add("d", "prefix-tuning", tokens=2, sites="decoder.*.prefix")
    with pytest.raises(cw.CommonweightError, match="stand at positions, and this model counts in another way"):
        t5.export_peft("d", tmp_path / "a", native=True)
    theirs(make("t5")[0], tmp_path / "t5", "SEQ_2_SEQ_LM")
    with pytest.raises(cw.CommonweightError, match=r"a way that is not followed here \(T5's distances\)"):
        t5.import_peft("t", tmp_path / "t5")


def test_another_model_or_an_encoder_decoder_is_refused(tmp_path):
    theirs(make("llama")[0], tmp_path / "a")
    with pytest.raises(cw.CommonweightError, match=r"prompt_embeddings is \(5, 64\), the base wants \(5, 128\)"):
        cw.Host(make("gpt2")[0]).import_peft("t", tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    config = json.loads(path.read_text())
    for key, value, said in (("num_layers", 3, "of 3 layers; this base has 2 attentions"),
                             ("num_transformer_submodules", 2, "a decoder; this base has 0 attentions")):  # fmt: skip
        path.write_text(json.dumps({**config, key: value}))
        with pytest.raises(cw.CommonweightError, match=said):
            cw.Host(make("llama")[0]).import_peft("t", tmp_path / "a")


PROMPTS = {
    "prompt-tuning": lambda: peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3),
    "p-tuning": lambda: peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, encoder_hidden_size=6),
}


@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize("kind", DECODERS)
def test_prompts_both_ways(kind, method, tmp_path):
    model, batch = make(kind)
    ones = torch.ones_like(batch["input_ids"])
    there = peft.get_peft_model(copy.deepcopy(model), PROMPTS[method]()).eval()
    there.save_pretrained(tmp_path / "a")
    host = cw.Host(model)
    assert host.import_peft("t", tmp_path / "a").method.name == method
    stir(host.add("mine", method, tokens=4))
    host.export_peft("mine", tmp_path / "b", native=True)
    again = peft.PeftModel.from_pretrained(make(kind)[0], tmp_path / "b").eval()
    for name, one, m in (("t", there, 3), ("mine", again, 4)):
        with torch.no_grad(), host.route(name):
            want = one(**batch, attention_mask=ones).logits[:, m:]
            torch.testing.assert_close(answer(model, batch), want, rtol=1e-5, atol=1e-6)


ENCODERS = {
    "Bert": {}, "Roberta": {},
    "DistilBert": {"token_dim": 32, "num_layers": 2, "num_attention_heads": 4, "num_transformer_submodules": 1},
    "ModernBert": {}, "MobileBert": {"token_dim": 16}, "DebertaV2": {}, "MPNet": {}, "RoFormer": {}, "NomicBert": {},
}  # fmt: skip
TASKS = {"SEQ_CLS": "ForSequenceClassification", "TOKEN_CLS": "ForTokenClassification", "FEATURE_EXTRACTION": "Model"}


def prompted(model, folder, task, method, **sizes):
    """PEFT's model with a prompt of 3, its head trained, saved."""
    torch.manual_seed(3)
    config = {"prompt-tuning": peft.PromptTuningConfig, "p-tuning": peft.PromptEncoderConfig}[method]
    more = {"encoder_hidden_size": 6} if method == "p-tuning" else {}
    there = peft.get_peft_model(copy.deepcopy(model), config(task_type=task, num_virtual_tokens=3, **sizes, **more))
    with torch.no_grad():
        for p in there.parameters():
            p.add_(0.3 * torch.randn_like(p) if p.requires_grad else 0)
    there.save_pretrained(folder)
    return there.eval()


def found(out, m):
    """Logits, or what belongs to the row's own tokens."""
    y = out.logits if "logits" in out else out.last_hidden_state
    return y[:, m:] if y.dim() == 3 else y


@pytest.mark.parametrize("method", PROMPTS)
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("name", ENCODERS)
def test_prompts_of_an_encoder_both_ways(name, task, method, tmp_path):
    """PEFT's classifier reads the first place of the longer row, where its first vector stands."""
    model = (made if name in kinds.ENCODERS else encoder)(name, TASKS[task])
    plain, batch = copy.deepcopy(model), {"input_ids": rows(), "attention_mask": torch.ones(4, 6, dtype=torch.long)}
    batch["attention_mask"][1, 4:] = batch["input_ids"][1, 4:] = 0
    there = prompted(model, tmp_path / "a", task, method, **ENCODERS[name])
    host = cw.Host(model)
    tenant = host.import_peft("t", tmp_path / "a")
    assert tenant.method.name == method and tenant.config.leads == (task == "SEQ_CLS")
    with torch.no_grad():
        want, base = found(there(**batch), 3), found(plain(**batch), 0)
        assert (want - base).abs().max() > 0.1
        with host.route(["t", None, "t", "t"]):
            got = found(model(**batch), 0)
        torch.testing.assert_close(got[[0, 2, 3]], want[[0, 2, 3]], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(got[1, :4], base[1, :4], rtol=1e-4, atol=1e-5)
        host.export_peft("t", tmp_path / "b", native=True)
        again = peft.PeftModel.from_pretrained(plain, tmp_path / "b").eval()
        torch.testing.assert_close(found(again(**batch), 3), want, rtol=1e-5, atol=1e-6)


def test_a_head_that_reads_another_place_in_peft(tmp_path):
    host = cw.Host(encoder("Bert", "ForSequenceClassification"))
    host.add("own", "prompt-tuning", tokens=3)
    with pytest.raises(cw.CommonweightError, match=r"the first vector stands, .* make it with leads=True"):
        host.export_peft("own", tmp_path / "a", native=True)
    host = cw.Host(encoder("Bert", "ForTokenClassification"))
    host.add("first", "prompt-tuning", tokens=3, leads=True)
    with pytest.raises(cw.CommonweightError, match=r"in PEFT's TOKEN_CLS .* make it without leads"):
        host.export_peft("first", tmp_path / "a", native=True)


def test_a_prefix_goes_back_to_peft_with_the_head_of_its_task(tmp_path):
    model, batch = classifier("Bert")
    plain, host = copy.deepcopy(model), cw.Host(model)
    stir(host.add("t", "prefix-tuning", tokens=5))
    host.export_peft("t", tmp_path / "a", native=True)
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
        got = peft.PeftModel.from_pretrained(plain, tmp_path / "a").eval()(**batch).logits
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
