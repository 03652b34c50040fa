"""Vocabularies that differ: every row of the result is a token's, from the models that have it."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

import commonweight as cw

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
WORDS = {"base": ["<unk>", "a", "b"], "m1": ["<unk>", "b", "x", "a"], "m2": ["<unk>", "a", "b", "y", "x"]}


@pytest.fixture
def states(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    out = {}
    g = torch.Generator().manual_seed(0)
    for name, words in WORDS.items():
        out[name] = {n: torch.randn(len(words) + 1, 4, generator=g) for n in (EMBED, HEAD)}  # one row of padding
        out[name]["model.norm.weight"] = torch.randn(4, generator=g)
        (tmp_path / name).mkdir()
        save_file(out[name], tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"vocab_size": len(words) + 1}))
        vocab = {w: i for i, w in enumerate(words)}
        Tokenizer(models.WordLevel(vocab, unk_token="<unk>")).save(f"{name}/tokenizer.json")
    return out


def merged(**recipe):
    out = cw.merge.make({"method": "linear", "models": ["m1", "m2"], **recipe}, "out").folder
    vocab = Tokenizer.from_file(f"{out}/tokenizer.json").get_vocab()
    return load_file(f"{out}/model.safetensors"), vocab, json.loads((out / "config.json").read_text())["vocab_size"]


def row(states, model, name, token):
    return states[model][name][WORDS[model].index(token)]


def test_union(states):
    state, vocab, size = merged(tokenizer="union")
    assert vocab == {"<unk>": 0, "b": 1, "x": 2, "a": 3, "y": 4} and size == 5
    for name in (EMBED, HEAD):
        assert state[name].shape == (5, 4)
        for token in ("<unk>", "a", "b", "x"):
            mean = (row(states, "m1", name, token) + row(states, "m2", name, token)) / 2
            torch.testing.assert_close(state[name][vocab[token]], mean)
        torch.testing.assert_close(state[name][4], row(states, "m2", name, "y"))  # its only donor stands in for m1


def test_base(states):
    state, vocab, size = merged(method="task_arithmetic", base="base", tokenizer="base")
    assert vocab == {"<unk>": 0, "a": 1, "b": 2} and size == 3
    for token in vocab:
        b, one, two = (row(states, m, EMBED, token) for m in ("base", "m1", "m2"))
        torch.testing.assert_close(state[EMBED][vocab[token]], one + two - b)


def test_a_model_lacks_what_the_base_or_several_have(states):
    recipe = {"models": ["m1", "m2", "base"], "weights": [0.5, 0.25, 0.25]}
    state, vocab, _ = merged(**recipe, tokenizer="union")
    one, two = row(states, "m1", EMBED, "x"), row(states, "m2", EMBED, "x")
    torch.testing.assert_close(state[EMBED][vocab["x"]], 0.5 * one + 0.25 * two + 0.25 * (one + two) / 2)


def test_tokens_and_padding(states):
    chosen = {"source": "union", "tokens": {"x": "m2"}, "multiple": 8}
    recipe = {"models": ["m1", "m2", "base"], "weights": [0.5, 0.25, 0.25]}
    state, vocab, size = merged(**recipe, tokenizer=chosen)
    one, two = row(states, "m1", EMBED, "x"), row(states, "m2", EMBED, "x")
    torch.testing.assert_close(state[EMBED][vocab["x"]], 0.5 * one + 0.5 * two)
    assert size == 8 == len(state[HEAD]) and not state[HEAD][5:].any()


def test_tied_heads_are_written_once(states):
    for name, state in states.items():
        save_file({**state, HEAD: state[EMBED].clone()}, f"{name}/model.safetensors")
        with open(f"{name}/config.json", "w") as f:
            json.dump({"vocab_size": 1, "tie_word_embeddings": True}, f)
    state, vocab, size = merged(tokenizer="union")
    assert HEAD not in state and len(state[EMBED]) == size == len(vocab)


def test_what_is_refused(states, tmp_path):
    with pytest.raises(cw.CommonweightError, match="'z' is not in the result's vocabulary"):
        merged(tokenizer={"tokens": {"z": "m1"}})
    with pytest.raises(cw.CommonweightError, match="'y' from m1, which is not merged or has no such token"):
        merged(tokenizer={"tokens": {"y": "m1"}})
    with pytest.raises(cw.CommonweightError, match="a multiple of 0; it must be at least 1"):
        merged(tokenizer={"multiple": 0})
    short = {n: t[:2].clone() if n == EMBED else t for n, t in states["m2"].items()}
    save_file(short, "m2/model.safetensors")
    with pytest.raises(cw.CommonweightError, match="has 2 rows, its tokenizer names row"):
        merged(tokenizer="union")
    (tmp_path / "m1" / "tokenizer.json").write_text("{}")
    with pytest.raises(cw.CommonweightError, match="cannot be read as a tokenizer"):
        merged(tokenizer="union")
    (tmp_path / "m1" / "tokenizer.json").unlink()
    with pytest.raises(cw.CommonweightError, match=r"m1: has no tokenizer.json"):
        merged(tokenizer="union")
    assert not (tmp_path / "out").exists()


def test_the_same_from_mergekit_s_file(states):
    ours, vocab, _ = merged(tokenizer="union")
    weight = {"parameters": {"weight": 1.0}}
    recipe = {"merge_method": "linear", "models": [{"model": m, **weight} for m in ("m1", "m2")]}
    done = cw.merge.make({**recipe, "tokenizer_source": "union"}, "theirs")
    torch.testing.assert_close(load_file(done.folder / "model.safetensors"), ours)
    assert Tokenizer.from_file(f"{done.folder}/tokenizer.json").get_vocab() == vocab
