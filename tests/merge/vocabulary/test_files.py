"""Vocabularies in whichever files they lie, and what a tokenizer of another model brings with it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import AddedToken, Tokenizer, models

import commonweight as cw
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build

EMBED = "embed_tokens.weight"
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "green", "blue"]


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def model(name, words, config=None):
    """A model whose row of a word says which word it is."""
    Path(name).mkdir()
    rows = torch.stack([torch.full((2,), float(sum(map(ord, w)))) for w in words])
    save_file({EMBED: rows, "norm.weight": torch.ones(2)}, f"{name}/model.safetensors")
    Path(f"{name}/config.json").write_text(json.dumps({"vocab_size": len(words), **(config or {})}))
    return rows


def fast(name, words, *added):
    t = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token=words[0]))
    t.add_tokens([a for a in added if not a.special])
    t.add_special_tokens([a for a in added if a.special])
    t.save(f"{name}/tokenizer.json")


def merged(**recipe):
    folder = cw.merge.make({"method": "linear", "models": ["a", "b"], **recipe}, "out").folder
    return load_file(folder / "model.safetensors")[EMBED], json.loads((folder / "config.json").read_text())


@pytest.mark.parametrize("kind", ["wordpiece", "bpe"])
def test_a_vocabulary_in_files_of_older_tokenizers(kind):
    rows = model("a", WORDS)
    fast("a", WORDS)
    other = [*WORDS[:5], "blue", "red", "green"]
    model("b", other)
    if kind == "wordpiece":
        Path("b/vocab.txt").write_text("\n".join(other) + "\n")
        Path("b/tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
    else:
        Path("b/vocab.json").write_text(json.dumps({w: i for i, w in enumerate(other)}))
        Path("b/merges.txt").write_text("#version: 0.2\n")
        about = {"tokenizer_class": "GPT2Tokenizer", **{f"{k}_token": "[UNK]" for k in ("bos", "eos", "unk")}}
        Path("b/tokenizer_config.json").write_text(json.dumps(about))
    found, _ = merged(tokenizer="base")
    torch.testing.assert_close(found, rows)
    notices = build(load({"method": "linear", "models": ["a", "b"]})).notices
    assert any("its vocabulary lies in vocab." in n and "a's in tokenizer.json" in n for n in notices)


def test_a_vocabulary_that_cannot_be_read_here():
    for name in "ab":
        model(name, WORDS)
        Path(f"{name}/tokenizer.model").write_bytes(b"not a model")
    recipe = {"method": "linear", "models": ["a", "b"], "tokenizer": "union"}
    assert not build(load(recipe)).notices, "the same bytes: the same vocabulary"
    Path("b/tokenizer.model").write_bytes(b"nor this")
    with pytest.raises(cw.CommonweightError, match=r"tokenizer.model: the vocabulary cannot be read here .*save the"):
        build(load(recipe))


def test_a_folder_without_a_vocabulary():
    model("a", WORDS)
    fast("a", WORDS)
    model("b", WORDS)
    recipe = {"method": "linear", "models": ["a", "b"], "tokenizer": {"multiple": 8}}
    told = "b: no vocabulary in its folder; its tokens count as those of a"
    assert any(told in n for n in build(load(recipe)).notices)
    Path("b/config.json").write_text('{"vocab_size": 9}')
    with pytest.raises(cw.CommonweightError, match="b has no vocabulary in its folder, and 9 tokens"):
        build(load(recipe))


def test_tokens_of_a_union_keep_what_they_are():
    about = {"special": True, "lstrip": True, "rstrip": True, "normalized": False}
    more = [AddedToken("<end>", **about), AddedToken("plain", single_word=True, normalized=False)]
    model("a", ["u", "x"])
    fast("a", ["u", "x"])
    model("b", ["u", "x", "plain", "<end>"])
    fast("b", ["u", "x"], *more)
    Path("a/vocab.txt").write_text("u\nx\n")  # no vocabulary of the result
    merged(tokenizer="union")
    there = {t.content: t for t in Tokenizer.from_file("out/tokenizer.json").get_added_tokens_decoder().values()}
    for key, value in about.items():
        assert getattr(there["<end>"], key) == value, key
    assert there["plain"].single_word and not there["plain"].normalized and not there["plain"].special
    assert not Path("out/vocab.txt").exists()


def test_a_tokenizer_of_another_model_and_the_base_s_config():
    model("a", ["<pad>", "<s>", "</s>", "x"], {"bos_token_id": 1, "eos_token_id": [2, 1], "n": 1})
    fast("a", ["<pad>", "<s>", "</s>", "x"])
    Path("a/generation_config.json").write_text('{"eos_token_id": 2, "top_k": 3}')
    Path("a/chat_template.jinja").write_text("a's")
    Path("a/preprocessor_config.json").write_text("{}")
    model("b", ["x", "y", "</s>", "<s>", "z"], {"n": 2, "bos_token_id": 3, "extra": True})
    fast("b", ["x", "y", "</s>", "<s>", "z"])
    Path("b/chat_template.jinja").write_text("b's")
    Path("b/processor_config.json").write_text("{}")
    _, config = merged(base="a", method="task_arithmetic", models=["b"], tokenizer="b")
    assert config == {"vocab_size": 5, "bos_token_id": 3, "eos_token_id": [2, 3], "n": 1}
    assert json.loads(Path("out/generation_config.json").read_text()) == {"eos_token_id": 2, "top_k": 3}
    assert Path("out/chat_template.jinja").read_text() == "b's"
    assert Path("out/preprocessor_config.json").exists() and not Path("out/processor_config.json").exists()
    Path("a/config.json").write_text('{"vocab_size": 4, "pad_token_id": 0}')
    built = build(load({"method": "task_arithmetic", "base": "a", "models": ["b"], "tokenizer": "b"}))
    assert any("the tokenizer has no token of pad_token_id ('<pad>')" in n for n in built.notices)
