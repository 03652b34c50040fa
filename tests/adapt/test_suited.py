"""A base that does not read what a task's rows hold is refused by name; one of more senses is trained on texts."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from typer.testing import CliRunner

import commonweight as cw
from commonweight import adapt
from commonweight.adapt.base import take_tokenizer
from commonweight.adapt.begun import unread
from commonweight.builder.load import tokenizer
from commonweight.cli import app
from commonweight.cli.bases import open_base
from commonweight.serve.prompts import loaded
from tests.adapt import tiny
from tests.host import test_families as made

SIZE = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}


def vit():
    return tf.ViTForImageClassification(tf.ViTConfig(**SIZE, image_size=8, patch_size=4, num_labels=3))


def bart():
    config = tf.BartConfig(
        vocab_size=44, d_model=32, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32, decoder_ffn_dim=32,
        encoder_attention_heads=4, decoder_attention_heads=4, max_position_embeddings=32,
    )  # fmt: skip
    return tf.BartForConditionalGeneration(config)


MODELS = {"vit": vit, "bart": bart, **{n: lambda n=n: getattr(made, n)()[0] for n in ("clip", "llava", "whisper")}}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("suited")

    def at(name):
        if not (home / name).exists():
            MODELS[name]().save_pretrained(home / name)
            tiny.tokenizer(home / name, "llama")
        return home / name

    return at


@pytest.mark.parametrize(
    ("name", "task", "says"),
    [
        ("vit", "embed", r"\(ViTModel\) does not suit the task embed, .* texts \(it reads pixel_values\); train it in"),
        ("clip", "classify", r"\(CLIPModel\) .* \(it wants pixel_values beside them\)"),
        ("whisper", "embed", "it reads input_features"),
        ("whisper", "lm", r"\(WhisperConfig\) has an encoder beside its decoder, and the task lm would train the dec"),
        ("bart", "lm", "decoder alone, which then reads nothing; train it in Python: transformers.Trainer on host.mod"),
        ("bart", "dpo", "the task dpo would"),
    ],
)
def test_what_a_task_cannot_be_trained_on(folder, name, task, says):
    with pytest.raises(cw.CommonweightError, match=says):
        adapt.open_host(folder(name), task)


@pytest.mark.parametrize("task", ["lm", "classify"])
def test_rows_of_texts_train_the_language_alone(folder, task):
    host = adapt.open_host(folder("llava"), task, dtype="float32")
    tenant = host.add("a", "mos", rank=2, labels=2 if task == "classify" else None)
    told = {n for n in tenant.table if not n.endswith("head")}
    assert told and all("language_model" in n for n in told)
    assert "vision" in str(host.coverage("a"))  # and says so
    assert any("vision" in n for n in host.add("b", "lora", rank=2, sites="vision").table)
    asked = adapt.open_host(folder("llava"), task, sites="*.q_proj", dtype="float32")
    assert any("vision" in n for n in asked.add("a", "lora", rank=2).table)


def test_it_is_loaded_to_be_asked_too(folder):
    assert type(loaded(str(folder("llava")))).__name__ == "LlavaForConditionalGeneration"


def test_a_tokenizer_of_special_tokens_alone(tmp_path):
    tf.BertConfig().save_pretrained(tmp_path)
    with pytest.raises(cw.CommonweightError, match=r"knows 5 special tokens and no words; its files .* are missing"):
        tokenizer(tmp_path)


def test_rows_that_do_not_reach_what_is_trained(folder):
    host = adapt.open_host(folder("llava"), "lm", dtype="float32")
    rows = [{"prompt": "w1 w2", "completion": "w3"}] * 4
    with pytest.raises(cw.CommonweightError, match=r"a: these rows do not reach what it changes \(model.vision_tower"):
        adapt.adapt(host, "a", rows, task="lm", method="lora", sites="vision", epochs=1)


def test_rows_that_reach_a_part_of_what_is_trained(folder, recwarn):
    host = adapt.open_host(folder("llava"), "lm", dtype="float32")
    rows = [{"prompt": "w1 w2", "completion": "w3"}] * 4
    adapt.adapt(host, "a", rows, task="lm", method="lora", sites="vision|language", epochs=1)
    (said,) = [str(w.message) for w in recwarn if "had no part" in str(w.message)]
    read = [u.site for u in host["a"].plan.uses]
    assert said.startswith(
        f"a: {sum('vision' in s for s in read)} of {len(read)} sites had no part in the first step ("
    )
    assert "vision_tower" in said and "language_model" not in said
    recwarn.clear()
    for method, sites in (("lora", "language"), ("mos", "language")):
        adapt.adapt(host, method, rows, task="lm", method=method, sites=sites, epochs=1)
    assert not [w for w in recwarn if "had no part" in str(w.message)]


def test_a_tenant_of_a_common_without_rows_in_the_first_step_is_not_told(tmp_path, recwarn):
    host = adapt.open_host(tiny.base(tmp_path), "classify", dtype="float32")
    a, b = (host.add(n, "lotr", rank=2, common="tasks", labels=("x", "y")) for n in "ab")
    with host.route("a"):
        host.model(input_ids=torch.ones(2, 3).long()).logits.sum().backward()
    assert any(p.grad is not None for p in b.pools.values())
    unread([a, b])
    assert not recwarn


@pytest.mark.parametrize(
    ("name", "kind"),
    [("llava", "LlavaForConditionalGeneration"), ("vit", "ViTForImageClassification"), ("clip", "CLIPModel"),
     ("whisper", "WhisperForConditionalGeneration"), ("bart", "Classifier")],
)  # fmt: skip
def test_a_base_is_opened_as_what_it_is(folder, name, kind):
    assert type(open_base(str(folder(name)), None).model).__name__ == kind


def test_a_tokenizer_with_tokens_of_its_own(tmp_path):
    base = tiny.base(tmp_path / "base", "llama")
    words = tf.AutoTokenizer.from_pretrained(base)
    words.add_tokens(["<tool>"])
    words.save_pretrained(tmp_path / "words")
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [{"prompt": "w1 <tool>", "completion": "w3 <tool>"}] * 4)
    how = ["--task", "lm", "--method", "lora", "--epochs", "1", "--token-rows", "added"]
    out = tmp_path / "t.safetensors"
    told = CliRunner().invoke(app, ["adapt", str(base), str(rows), *how, "--out", str(out)])
    assert told.exit_code and "--tokenizer FOLDER" in " ".join(str(told.exception).split())
    told = CliRunner().invoke(
        app, ["adapt", str(base), str(rows), *how, "--out", str(out), "--tokenizer", str(tmp_path / "words")]
    )
    assert told.exit_code == 0, told.output
    host = adapt.open_host(base, "lm")
    host.load("t", out)
    assert host.base.vocabulary == len(words) and "<tool>" in told.output


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_a_tokenizer_that_is_none_says_what_was_wanted(tmp_path, name):
    host = adapt.open_host(tiny.base(tmp_path / "base", "llama"), "lm")
    with pytest.raises(cw.CommonweightError, match=f"no tokenizer can be read at {name!r}: .*--tokenizer .* a folder"):
        take_tokenizer(host.model, name)
