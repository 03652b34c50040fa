"""Vocabularies that differ: every row of the result is a token's, from the models that have it."""

from __future__ import annotations

import json
import os

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, models

import commonweight as cw
from commonweight.merge.recipe import load
from commonweight.merge.recipe.build import build
from commonweight.merge.vocabulary.tokens import unlike

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
            json.dump({"vocab_size": len(state[EMBED]), "tie_word_embeddings": True}, f)
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
    with pytest.raises(cw.CommonweightError, match=rf"{EMBED}: .*m2.* has shape \(2, 4\)"):
        merged(tokenizer="union")
    save_file({n: t[:2].clone() if len(t) > 4 else t for n, t in states["m2"].items()}, "m2/model.safetensors")
    (tmp_path / "m2" / "config.json").write_text('{"vocab_size": 2}')
    with pytest.raises(cw.CommonweightError, match="has 2 rows, its tokenizer names row"):
        merged(tokenizer="union")
    (tmp_path / "m1" / "tokenizer.json").write_text("{}")
    with pytest.raises(cw.CommonweightError, match="cannot be read as a tokenizer"):
        merged(tokenizer="union")
    (tmp_path / "m1" / "tokenizer.json").unlink()
    with pytest.raises(cw.CommonweightError, match=r"m1: has no tokenizer.json"):
        merged(tokenizer="union")
    assert not (tmp_path / "out").exists()


WIDTH, SIZE = 4, 7
LIKE = {  # other families' names; one with a head's bias, one whose head lies turned
    "t5": {"shared.weight": (SIZE, WIDTH), "encoder.block.0.layer.0.SelfAttention.q.weight": (WIDTH, WIDTH)},
    "modernbert": {"model.embeddings.tok_embeddings.weight": (SIZE, WIDTH), "decoder.bias": (SIZE,)},
    "xlnet": {"transformer.word_embedding.weight": (SIZE, WIDTH), "lm_loss.weight": (SIZE, WIDTH)},
    "mamba": {"backbone.embeddings.weight": (SIZE, WIDTH), "backbone.norm_f.weight": (WIDTH,)},
    "bert": {
        "bert.embeddings.word_embeddings.weight": (SIZE, WIDTH),
        "bert.embeddings.position_embeddings.weight": (9, WIDTH),
        "cls.predictions.bias": (SIZE,),
    },
    "turned": {"embed.weight": (SIZE, WIDTH), "head.kernel": (WIDTH, SIZE)},
}
ORDERS = {"m1": "abcdefg", "m2": "gfacbed"}


@pytest.fixture(params=LIKE)
def permuted(request, tmp_path, monkeypatch):
    """Two models that are the same but for the order of their tokens, in a third one's: (states, family)."""
    monkeypatch.chdir(tmp_path)
    g = torch.Generator().manual_seed(0)
    lead = {n: torch.randn(s, generator=g) for n, s in LIKE[request.param].items()}
    for name, words in ORDERS.items():
        place = [ORDERS["m1"].index(w) for w in words]
        state = {n: t[place] if len(t) == SIZE else t[:, place] if SIZE in t.shape else t for n, t in lead.items()}
        (tmp_path / name).mkdir()
        save_file({n: t.contiguous() for n, t in state.items()}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps({"vocab_size": SIZE, "d_model": WIDTH}))
        vocab = {w: i for i, w in enumerate(words)}
        Tokenizer(models.WordLevel(vocab, unk_token="a")).save(f"{name}/tokenizer.json")
    return lead


def test_whatever_has_an_entry_for_each_token_is_mapped(permuted):
    state, vocab, size = merged(tokenizer="union")
    assert vocab == {w: i for i, w in enumerate(ORDERS["m1"])} and size == SIZE
    for name, t in permuted.items():
        torch.testing.assert_close(state[name], t, msg=name)


def test_entries_that_are_padded_are_zero_and_pieces_are_any(permuted):
    from commonweight.merge.sources.model import open_source
    from commonweight.merge.vocabulary.tokens import Mapped

    sources = {m: open_source(m, m) for m in ORDERS}
    table = {0: [("m2", 0)], 1: [("m1", 3), ("m2", 5)], 2: [("m1", 4)], 3: [("m1", 5)]}
    found = Mapped("m2", sources, table, 6)
    assert found.notices == [f"tokenizer: mapped by token: {', '.join(found.mapped)}"]
    assert found.mapped == {n: s.index(SIZE) for n, s in shapes_of(permuted).items() if SIZE in s}
    for name, axis in found.mapped.items():
        one, two = (load_file(f"{m}/model.safetensors")[name].movedim(axis, 0) for m in ORDERS)
        wanted = torch.stack([two[0], (one[3] + two[5]) / 2, one[4], one[5], one[0] * 0, one[0] * 0])
        whole = found.read(name)
        torch.testing.assert_close(whole.movedim(axis, 0), wanted)
        for start, count in ((0, 1), (1, whole.numel() - 2), (whole.numel() // 2, 3)):
            assert torch.equal(found.flat(name, start, count), whole.reshape(-1)[start : start + count])


def shapes_of(state):
    return {n: tuple(t.shape) for n, t in state.items()}


def test_other_sizes_and_a_bias(tmp_path, monkeypatch):
    """A masked language model's head: its bias goes with its tokens."""
    monkeypatch.chdir(tmp_path)
    states = {}
    for name, words in {"m1": ["<unk>", "a", "b"], "m2": ["<unk>", "c", "b", "a", "d"]}.items():
        states[name] = {"cls.predictions.bias": torch.randn(len(words)), "word.weight": torch.randn(len(words), 4)}
        (tmp_path / name).mkdir()
        save_file(states[name], tmp_path / name / "model.safetensors")
        config = {"model_type": "x", "text_config": {"vocab_size": len(words)}}
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")).save(
            f"{name}/tokenizer.json"
        )
    state, vocab, size = merged(tokenizer="union")
    assert vocab == {"<unk>": 0, "a": 1, "b": 2, "c": 3, "d": 4} and size == 5
    for name in states["m1"]:
        one, two = states["m1"][name], states["m2"][name]
        wanted = [(one[0] + two[0]) / 2, (one[1] + two[3]) / 2, (one[2] + two[2]) / 2, two[1], two[4]]
        torch.testing.assert_close(state[name], torch.stack(wanted))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (None, "m1.*: its config.json has no vocab_size; wanted one number"),
        ({"vocab_size": "7"}, "its config.json has '7' vocab_size"),
        ({"encoder": {"vocab_size": 7}, "decoder": {"vocab_size": 8}}, "its config.json has 7 and 8 vocab_size"),
        ({"vocab_size": 8}, "no tensor of .*m1.* has 8 rows, the vocab_size in its config.json"),
    ],
)
@pytest.mark.parametrize("permuted", ["mamba"], indirect=True)
def test_a_size_that_does_not_tell(permuted, config, message):
    for name in ORDERS:
        path = f"{name}/config.json"
        if config is None:
            os.unlink(path)
            continue
        with open(path, "w") as f:
            json.dump(config, f)
    with pytest.raises(cw.CommonweightError, match=message):
        merged(tokenizer="union")


def configured(**config):
    for name in ORDERS:
        with open(f"{name}/config.json", "w") as f:
            json.dump(config, f)


def added(**tensors):
    for name in ORDERS:
        save_file({**load_file(f"{name}/model.safetensors"), **tensors}, f"{name}/model.safetensors")


@pytest.mark.parametrize("permuted", ["mamba", "bert", "xlnet"], indirect=True)
def test_another_size_that_is_the_same_and_of_no_tensor(permuted):
    """Mistral 0.3: vocab_size is max_position_embeddings, and its positions are rotated."""
    configured(vocab_size=SIZE, max_position_embeddings=SIZE)
    state, _, _ = merged(tokenizer="union")
    for name, t in permuted.items():
        torch.testing.assert_close(state[name], t, msg=name)


@pytest.mark.parametrize("permuted", ["xlnet"], indirect=True)
@pytest.mark.parametrize("name", ["wpe.weight", "embed_positions.weight", "pos.embed.weight", "norm.weight"])
def test_another_size_that_a_tensor_has(permuted, name):
    configured(vocab_size=SIZE, n_positions=SIZE)
    added(**{name: torch.ones(SIZE, WIDTH)})
    with pytest.raises(cw.CommonweightError, match=rf"so is a size of n_positions \(its tensor: {name}\); which"):
        merged(tokenizer="union")


@pytest.mark.parametrize("permuted", ["mamba"], indirect=True)
def test_a_square_table_does_not_tell(permuted):
    configured(vocab_size=SIZE, hidden_size=SIZE)
    for name in ORDERS:
        save_file({"embed.weight": torch.ones(SIZE, SIZE)}, f"{name}/model.safetensors")
    with pytest.raises(cw.CommonweightError, match="so is a size of hidden_size"):
        merged(tokenizer="union")


@pytest.mark.parametrize("permuted", ["mamba"], indirect=True)
@pytest.mark.parametrize("own", [{"text_config": {"vocab_size": SIZE}}, {"vocab_size": SIZE, "text_config": {}}])
def test_the_vocabulary_is_the_text_s(permuted, own):
    """BLIP-2 has another one in its qformer_config."""
    configured(qformer_config={"vocab_size": 30}, **own)
    state, _, _ = merged(tokenizer="union")
    for name, t in permuted.items():
        torch.testing.assert_close(state[name], t, msg=name)


@pytest.mark.parametrize("permuted", ["mamba"], indirect=True)
def test_a_size_that_blocks_have_too(permuted):
    for name in ORDERS:
        more = {f"layers.{i}.w": torch.ones(2, SIZE) for i in range(2)}
        save_file({**load_file(f"{name}/model.safetensors"), **more}, f"{name}/model.safetensors")
    with pytest.raises(cw.CommonweightError, match=r"and so is a size of layers.\*.w; which tensors"):
        merged(tokenizer="union")


@pytest.mark.parametrize("permuted", ["mamba"], indirect=True)
def test_a_notice_where_vocabularies_differ_and_nothing_is_mapped(permuted, tmp_path):
    folders = {m: tmp_path / m for m in ORDERS}
    (notice,) = unlike(folders)
    built = build(load({"method": "linear", "models": [str(f) for f in folders.values()]}))
    assert [n for n in built.notices if "rows are merged as they lie" in n]
    assert notice.startswith("m2: its vocabulary is not m1's, and rows are merged as they lie")
    text = json.loads((tmp_path / "m1" / "tokenizer.json").read_text())
    (tmp_path / "m2" / "tokenizer.json").write_text(json.dumps(text, indent=7))
    assert unlike(folders) == []
    (tmp_path / "m2" / "tokenizer.json").write_text("{ }")
    built = build(load({"method": "linear", "models": [str(f) for f in folders.values()]}))
    assert [n for n in built.notices if n.endswith("whether the vocabularies are the same is not known")]
    (tmp_path / "m2" / "tokenizer.json").write_text(json.dumps(text))
    (tmp_path / "m1" / "tokenizer.json").unlink()
    assert unlike(folders) == [] == unlike({})


def test_the_same_from_mergekit_s_file(states):
    ours, vocab, _ = merged(tokenizer="union")
    weight = {"parameters": {"weight": 1.0}}
    recipe = {"merge_method": "linear", "models": [{"model": m, **weight} for m in ("m1", "m2")]}
    done = cw.merge.make({**recipe, "tokenizer_source": "union"}, "theirs")
    torch.testing.assert_close(load_file(done.folder / "model.safetensors"), ours)
    assert Tokenizer.from_file(f"{done.folder}/tokenizer.json").get_vocab() == vocab
