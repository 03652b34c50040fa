"""What PEFT saves beside an adapter, in and out: modules_to_save, trained tokens, resized embeddings."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn

import commonweight as cw
from tests.laws.subjects import stir
from tests.methods.selective.test_tokens import llama
from tests.models import VOCAB, B, make

peft = pytest.importorskip("peft")
from peft.tuners.tuners_utils import replicate_layers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(3, VOCAB, (B, 7), generator=torch.Generator().manual_seed(4))


def trained(model: nn.Module, config, folder, **how) -> nn.Module:
    theirs = peft.get_peft_model(model, config)
    g = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for p in theirs.parameters():
            if p.requires_grad:
                p.add_(0.2 * torch.randn(p.shape, generator=g))
    theirs.save_pretrained(folder, **how)
    return theirs.eval()


def logits(model: nn.Module, ids=IDS):
    with torch.no_grad():
        return model(ids).logits


def lora(**more):
    return peft.LoraConfig(r=2, target_modules=["q_proj"], **more)


def bert():
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, num_labels=3
    )
    return tf.BertForSequenceClassification(config).eval()


def words():
    torch.manual_seed(0)
    config = tf.BertConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
    )
    return tf.BertForMaskedLM(config).eval()


def gpt2():
    return make("gpt2")[0]


BESIDE = {
    "head": lora(modules_to_save=["lm_head"]),
    "table": lora(modules_to_save=["embed_tokens"]),
    "both": lora(modules_to_save=["embed_tokens", "lm_head"]),
    "both, tied": lora(modules_to_save=["embed_tokens", "lm_head"], ensure_weight_tying=True),
    "norms": lora(modules_to_save=["norm", "input_layernorm"]),
    "tokens": lora(trainable_token_indices=[1, 5]),
    "tokens of both": lora(trainable_token_indices={"embed_tokens": [1, 5], "lm_head": [2, 5, 7]}),
    "ia3": peft.IA3Config(target_modules=["k_proj"], feedforward_modules=[], modules_to_save=["lm_head"]),
    "through PEFT": peft.LoHaConfig(r=2, target_modules=["k_proj"], modules_to_save=["norm", "embed_tokens"]),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", BESIDE)
def test_in_and_out(name, tied, tmp_path):
    if name == "both, tied" and not tied:
        return
    theirs = trained(llama(tied), BESIDE[name], tmp_path / "a")
    want = logits(theirs)
    host = cw.Host(llama(tied))
    tenant = host.import_peft("t", tmp_path / "a")
    assert tenant.held
    with host.route("t"):
        torch.testing.assert_close(logits(host.model), want, rtol=1e-4, atol=1e-5)
    with host.route(["t", None, None, "t"]):
        torch.testing.assert_close(logits(host.model)[3], want[3], rtol=1e-4, atol=1e-5)
    again = cw.Host(llama(tied))
    again.load("t", host.save("t", tmp_path / "t.safetensors"))
    with again.route("t"):
        torch.testing.assert_close(logits(again.model), want, rtol=1e-4, atol=1e-5)
    host.export_peft("t", tmp_path / "b")
    back = peft.PeftModel.from_pretrained(llama(tied), str(tmp_path / "b")).eval()
    torch.testing.assert_close(logits(back), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("make_base", "config"),
    [
        (bert, peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS")),
        (bert, peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", modules_to_save=["pooler"])),
        (bert, peft.LoraConfig(r=2, target_modules=["query"], bias="lora_only", modules_to_save=["layer.1.output"])),
        (bert, peft.LoraConfig(r=2, target_modules=["query"], trainable_token_indices={"word_embeddings": [3, 4]})),
        (gpt2, peft.LoraConfig(r=2, target_modules=["c_attn"], modules_to_save=["c_proj", "ln_f", "wte"])),
        (gpt2, peft.LoraConfig(r=2, target_modules=["c_attn"], trainable_token_indices=[3, 4])),
        (bert, peft.LoraConfig(r=2, target_modules=["query"], bias="all")),
        (words, peft.LoraConfig(r=2, target_modules=["query"], bias="all")),  # a bias of two names
        (gpt2, peft.LoraConfig(r=2, target_modules=["c_attn"], bias="all")),
        (bert, peft.LoraConfig(r=2, target_modules=["query"], bias="all", modules_to_save=["classifier"])),
    ],
)
def test_other_models(make_base, config, tmp_path):
    theirs = trained(make_base(), config, tmp_path / "a")
    host = cw.Host(make_base())
    host.import_peft("t", tmp_path / "a")
    again = cw.Host(make_base())
    again.load("t", host.save("t", tmp_path / "t.safetensors"))
    for each in (host, again):
        with each.route("t"):
            torch.testing.assert_close(logits(each.model), logits(theirs), rtol=1e-4, atol=1e-5)
        with each.route([None, "t", "t", None]):
            torch.testing.assert_close(logits(each.model)[1], logits(theirs)[1], rtol=1e-4, atol=1e-5)
    stir(host["t"])
    host.export_peft("t", tmp_path / "b")
    back = peft.PeftModel.from_pretrained(make_base(), str(tmp_path / "b")).eval()
    with host.route("t"):
        torch.testing.assert_close(logits(host.model), logits(back), rtol=1e-4, atol=1e-5)


def test_a_classifiers_head_and_its_pooler(tmp_path):
    """On a host of the encoder, the head comes with labels and the pooler as it is."""
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="SEQ_CLS", modules_to_save=["pooler"])
    theirs = trained(bert(), config, tmp_path / "a")
    from commonweight.adapt.classifier import Classifier

    host = cw.Host(Classifier(bert().bert, "pooler"))
    tenant = host.import_peft("t", tmp_path / "a", labels=("a", "b", "c"))
    assert tenant.beside.copies == ("encoder.pooler.dense",) and tenant.labels == ("a", "b", "c")
    with host.route("t"):
        torch.testing.assert_close(logits(host.model), logits(theirs), rtol=1e-4, atol=1e-5)


def resized(tied: bool, seed: int = 5) -> nn.Module:
    model = llama(tied)
    torch.manual_seed(seed)
    model.resize_token_embeddings(VOCAB + 3, mean_resizing=False)
    return model


NEW = IDS.clone()
NEW[:, 2], NEW[:, 4] = VOCAB + 2, VOCAB
RESIZED = {
    "saved": (lora(), {"save_embedding_layers": True}),
    "trained tokens": (lora(trainable_token_indices=[VOCAB, VOCAB + 1, VOCAB + 2]), {"save_embedding_layers": True}),
    "whole": (lora(modules_to_save=["embed_tokens", "lm_head"]), {}),
}


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("name", RESIZED)
def test_a_folder_with_more_tokens_than_the_base(name, tied, tmp_path):
    """The base grows by itself; the tenants that were there stay as they were, and its file knows what it brings."""
    config, how = RESIZED[name]
    theirs = trained(resized(tied), config, tmp_path / "a", **how)
    host = cw.Host(llama(tied))
    stir(host.add("old", "lora", rank=2, sites="*.q_proj|*embed_tokens", seed=1))
    plain = logits(host.model)
    with host.route("old"):
        before = logits(host.model)
    path = host.save("old", tmp_path / "old.safetensors")
    tenant = host.import_peft("t", tmp_path / "a")
    assert (tenant.vocabulary, host["old"].vocabulary, host.base.vocabulary) == (VOCAB + 3, VOCAB, VOCAB + 3)
    with host.route("t"):
        torch.testing.assert_close(logits(host.model, NEW), logits(theirs, NEW), rtol=1e-4, atol=1e-5)
    with host.route(["old", "t", None, "old"]):
        mixed = logits(host.model)
    for found, want in ((mixed[0], before[0]), (mixed[2], plain[2]), (logits(host.model)[1], plain[1])):
        torch.testing.assert_close(found[..., :VOCAB], want, rtol=1e-4, atol=1e-5)
        assert torch.isneginf(found[..., VOCAB:]).all()
    torch.testing.assert_close(mixed[1], logits(theirs)[1], rtol=1e-4, atol=1e-5)
    bigger = host.save("t", tmp_path / "t.safetensors")
    for base in (llama(tied), resized(tied, seed=7)):
        again = cw.Host(base)
        again.load("old", path)
        again.load("t", bigger)
        with again.route("t"):
            torch.testing.assert_close(logits(again.model, NEW), logits(theirs, NEW), rtol=1e-4, atol=1e-5)
        with again.route("old"):
            torch.testing.assert_close(logits(again.model)[..., :VOCAB], before, rtol=1e-4, atol=1e-5)
    cw.Host(llama(tied)).load("old", host.save("old", tmp_path / "old2.safetensors"))


def test_trained_tokens_beyond_the_base_come_where_the_head_follows(tmp_path):
    """As rows alone: PEFT's users resize the model first."""
    theirs = trained(resized(True), lora(trainable_token_indices=[5, *range(VOCAB, VOCAB + 3)]), tmp_path / "a")
    host = cw.Host(llama(True))
    assert host.import_peft("t", tmp_path / "a").vocabulary == VOCAB + 3
    with host.route("t"):
        torch.testing.assert_close(logits(host.model, NEW), logits(theirs, NEW), rtol=1e-4, atol=1e-5)
    trained(resized(True), lora(trainable_token_indices=[5, VOCAB + 2]), tmp_path / "b")
    with pytest.raises(cw.CommonweightError, match=f"entry {VOCAB + 2} of {VOCAB}: resize the model first"):
        cw.Host(llama(True)).import_peft("t", tmp_path / "b")


def test_rows_that_a_folder_does_not_bring_are_asked_for(tmp_path):
    """PEFT saves the table that an adapter lies on, and not the head that was resized with it."""
    config = peft.LoraConfig(r=2, target_modules=["q_proj", "embed_tokens"])
    theirs = trained(resized(False), config, tmp_path / "a")
    host = cw.Host(llama(False))
    with pytest.raises(cw.CommonweightError, match="made for 64 tokens, and this base has 61: 3 rows of"):
        host.import_peft("t", tmp_path / "a")
    assert host.base.vocabulary == VOCAB and not len(host)
    host = cw.Host(resized(False))
    host.import_peft("t", tmp_path / "a")
    with host.route("t"):
        torch.testing.assert_close(logits(host.model, NEW), logits(theirs, NEW), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make_base", [lambda: llama(True), gpt2])
@pytest.mark.parametrize("ranks", [(), (("*embed_tokens|*wte", 3),)])
def test_lora_on_a_table_that_the_head_follows(make_base, ranks, tmp_path):
    host, again = cw.Host(make_base()), cw.Host(make_base())
    stir(host.add("t", "lora", rank=2, sites="*embed_tokens|*wte|*.0.*q_proj|*.0.*c_attn", ranks=ranks))
    host.export_peft("t", tmp_path / "t")
    assert not again.import_peft("t", tmp_path / "t").apart
    back = peft.PeftModel.from_pretrained(make_base(), str(tmp_path / "t")).eval()
    with host.route("t"), again.route("t"):
        torch.testing.assert_close(logits(back), logits(host.model), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(logits(again.model), logits(host.model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("targets", [["wte"], ["wte", "lm_head"]])
def test_a_head_that_peft_did_not_tie_stays_as_in_peft(targets, tmp_path):
    """Alone, ensure_weight_tying does nothing with GPT-2."""
    config = peft.LoraConfig(r=2, target_modules=targets, ensure_weight_tying=True, init_lora_weights=False)
    theirs = trained(gpt2(), config, tmp_path / "a")
    host = cw.Host(gpt2())
    assert host.import_peft("t", tmp_path / "a").apart == ("lm_head" not in targets)
    with host.route("t"):
        torch.testing.assert_close(logits(host.model), logits(theirs), rtol=1e-4, atol=1e-4)


DEEPER = {
    "llama": (lambda: make("llama")[0], "q_proj", "model.layers"),
    "bert": (bert, "query", "bert.encoder.layer"),
}


@pytest.mark.parametrize("kind", DEEPER)
@pytest.mark.parametrize("shared", [True, False])
def test_repeated_layers_open_on_the_deeper_model(kind, shared, tmp_path):
    make_base, target, at = DEEPER[kind]
    more = {"task_type": "SEQ_CLS", "modules_to_save": []} if kind == "bert" else {}
    config = peft.LoraConfig(r=2, target_modules=[target], layer_replication=[[0, 2], [1, 2]], **more)
    theirs = trained(make_base(), config, tmp_path / "a")
    deep = make_base()
    replicate_layers(deep, [(0, 2), (1, 2)])
    if not shared:
        blocks = deep.get_submodule(at)
        blocks[2].load_state_dict({k: v.clone() for k, v in blocks[1].state_dict().items()})
        for m in blocks[2].modules():
            m._parameters.update({k: nn.Parameter(p.clone()) for k, p in m._parameters.items() if p is not None})
    host = cw.Host(deep)
    host.import_peft("t", tmp_path / "a")
    with host.route("t"):
        torch.testing.assert_close(logits(deep), logits(theirs), rtol=1e-4, atol=1e-5)
    with pytest.raises(cw.CommonweightError, match="it has 3 layers; this base has 2 layers"):
        cw.Host(make_base()).import_peft("t", tmp_path / "a")
    if not shared:
        host.close()
        with torch.no_grad():
            next(deep.get_submodule(at)[2].parameters()).add_(1)
        with pytest.raises(cw.CommonweightError, match="makes layers 1 and 2 copies of one layer"):
            cw.Host(deep).import_peft("t", tmp_path / "a")


def test_what_no_folder_can_say_is_refused(tmp_path):
    host = cw.Host(llama(True))
    host.add("a", "lora", modules_to_save=["lm_head"], token_rows=[3])
    with pytest.raises(cw.CommonweightError, match="PEFT ties trained tokens of the table to the head"):
        host.export_peft("a", tmp_path / "a")
    host.add("b", "ia3", token_rows=[3])
    with pytest.raises(cw.CommonweightError, match="PEFT trains tokens beside LoRA alone, not beside IA3"):
        host.export_peft("b", tmp_path / "b", native=True)
