"""Rows that a library repeats, streams or packs keep their readers: generation, and others' sorting."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers as tf
from transformers import ContinuousBatchingConfig, GenerationConfig

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

from .routed import HOW, NAMES, deberta, writer, written


def test_numbers_of_rows_follow_beams_and_models_without_rows():
    host, model, ids = writer()
    numbers = torch.tensor([host[n].number for n in ("a", "b")])
    want = written(host, model, ids[:2], ["a", "b"], num_beams=3)
    several = host.module(["a", "b"])
    ones = torch.ones_like(ids[:2])
    assert torch.equal(several.generate(ids[:2], attention_mask=ones, num_beams=3, **HOW, tenants=numbers), want)
    model = deberta().eval()
    host = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=4), i, 0.5)
    with host.route(["a", "b"]):
        want = model(ids[:2])[0]
    assert torch.equal(host.module(["a", "b"])(ids[:2], tenants=numbers)[0], want)


@pytest.mark.parametrize("kind", ["llama", "t5"])
@pytest.mark.parametrize(
    "how", [{"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {"num_beams": 1}], ids=str
)
def test_beams_keep_their_rows_readers(kind, how):
    host, model, ids = writer(kind)
    with host.route(["a", None, "b"]):
        mixed = model.generate(ids, attention_mask=torch.ones_like(ids), **{**HOW, **how})
    n = how.get("num_return_sequences", 1)
    for row, name in enumerate(["a", None, "b"]):
        alone = written(host, model, ids[row : row + 1], name, **how)
        width = min(alone.shape[1], mixed.shape[1])
        assert torch.equal(mixed[row * n : row * n + n, :width], alone[:, :width])


def test_sampled_sequences_keep_their_rows_readers():
    host, model, ids = writer()
    seen = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[0]))
    with host.route(["a", None, "b"]):
        out = model.generate(ids, do_sample=True, num_return_sequences=2, max_new_tokens=2)
        with pytest.raises(cw.CommonweightError, match=r"names 3 readers, the batch has 6 rows"):
            model(input_ids=out)  # outside of generation nobody repeated rows
    handle.remove()
    assert out.shape[0] == 6 and set(seen) == {4, 6}  # some rows are looked at beforehand, once a model


def test_candidates_of_contrastive_search_keep_their_rows_readers():
    """Such searches lie in repositories of their own: each step passes every row's candidates, one after the other."""
    host, model, ids = writer()
    top = 2
    want = {n: written(host, model, ids, n, output_logits=True, return_dict_in_generate=True).logits[0] for n in NAMES}

    def contrast(model, input_ids, **_):
        plain = model(input_ids=input_ids).logits[:, -1]
        wide = model(input_ids=input_ids.repeat_interleave(top, 0)).logits[:, -1]
        for row, name in enumerate(["a", None, "b"]):
            torch.testing.assert_close(plain[row], want[name][row])
            torch.testing.assert_close(wide[top * row : top * row + top], want[name][row].expand(top, -1))
        return input_ids

    with host.route(["a", None, "b"]):
        config = GenerationConfig(penalty_alpha=0.6, top_k=top, max_new_tokens=2)
        model.generate(ids, custom_generate=contrast, generation_config=config)


def test_a_streaming_thread_writes_as_the_tenant():
    host, model, ids = writer()
    found = []
    with host.route("a"):
        t = threading.Thread(target=lambda: found.append(model.generate(ids, **HOW)))
        t.start()
    t.join()
    assert torch.equal(found[0], written(host, model, ids, "a"))
    assert not torch.equal(found[0], written(host, model, ids, None))


PAGED = ContinuousBatchingConfig(num_blocks=16, page_size=32, max_batch_tokens=64)


def batched(model, ids, **how):
    config = GenerationConfig(**HOW, eos_token_id=-1, pad_token_id=0)
    found = model.generate_batch(ids.tolist(), generation_config=config, continuous_batching_config=PAGED, **how)
    assert list(found) == [r.request_id for r in found.values()] == [f"req_{i}" for i in range(len(ids))]
    return [r.generated_tokens for r in found.values()]


@pytest.mark.filterwarnings("ignore")
def test_continuous_batching_answers_as_the_route_says():
    host, model, ids = writer()
    model.generation_config.eos_token_id = None
    want = {n: written(host, model, ids, n)[:, 5:].tolist() for n in NAMES}
    for n in NAMES:
        with host.route(n):
            assert batched(model, ids) == want[n]
    with host.route(["a", None, "b"]):
        assert batched(model, ids) == [want["a"][0], want[None][1], want["b"][2]]
    assert batched(host.module("b"), ids) == want["b"]
    with host.route(["a", None]), pytest.raises(cw.CommonweightError, match="2 readers, there are 3 prompts"):
        batched(model, ids)


@pytest.mark.filterwarnings("ignore")
def test_a_kept_manager_of_continuous_batching_serves_one_reader():
    host, model, ids = writer()
    model.generation_config.eos_token_id = None
    want = {n: written(host, model, ids, n)[:, 5:].tolist() for n in "ab"}
    for n in "aba":
        with host.route(n):
            found = batched(model, ids, persistent_manager=True)
            assert found == want[n], "prefixes that were computed as another tenant are not reused"
    with host.route("a"):
        manager = model.init_continuous_batching(continuous_batching_config=PAGED)
    with host.route("b"), pytest.raises(cw.CommonweightError, match="made under another route"):
        manager.add_request([5, 6, 7])
    with host.route(["a", "b"]), pytest.raises(cw.CommonweightError, match="answers as one tenant"):
        model.init_continuous_batching(continuous_batching_config=PAGED)
    with host.route("a"):
        model.destroy_cached_continuous_batching_manager()


@pytest.mark.filterwarnings("ignore")
def test_a_kept_manager_of_continuous_batching_serves_one_task():
    host, model, ids = writer()
    model.generation_config.eos_token_id = None
    stir(host.add("t", "poly", tasks="x,y", skills=2, rank=2), std=1.0)
    ids, found = ids[:1].repeat(1, 8), {}  # more than a page, whose keys a cache of prefixes keeps
    for task in "xy":
        with host.route("t", task):
            want = model.generate(ids, attention_mask=torch.ones_like(ids), **HOW)[:, ids.shape[1] :].tolist()
            found[task] = batched(model, ids, persistent_manager=True)
            assert found[task] == want, "prefixes that were computed as another task are not reused"
    assert found["x"] != found["y"]
    with host.route("t", "x"):
        manager = model.init_continuous_batching(continuous_batching_config=PAGED)
    with host.route("t", "y"), pytest.raises(cw.CommonweightError, match="made under another route"):
        manager.add_request([5, 6, 7])
    with host.route("t", "x"):
        model.destroy_cached_continuous_batching_manager()


@pytest.mark.filterwarnings("ignore")
def test_continuous_batching_refuses_what_has_no_paged_attention():
    """transformers runs it, and every token then follows from the last one alone (findings/)."""
    torch.manual_seed(0)
    small = dict(n_embd=32, n_layer=2, n_head=4, n_positions=64, vocab_size=61, bos_token_id=1, eos_token_id=2)
    model = tf.GPTJForCausalLM(tf.GPTJConfig(rotary_dim=4, **small)).eval()
    host = cw.Host(model)
    host.add("a", "lora", rank=2)
    for route in ("a", ["a", None]):
        with host.route(route), pytest.raises(cw.CommonweightError, match="GPTJForCausalLM cannot read the paged"):
            batched(model, torch.tensor([[5, 6, 7], [8, 9, 10]]))


# -- others' libraries -------------------------------------------------------------------------------------------------


def sentences():
    st = pytest.importorskip("sentence_transformers")
    tokenizers = pytest.importorskip("tokenizers")
    vocabulary = {w: i for i, w in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnop"])}
    raw = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    raw.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer = tf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")
    return st, tokenizer


@pytest.mark.filterwarnings("ignore")
def test_sentence_transformers_sorts_rows_and_readers_follow(tmp_path):
    st, tokenizer = sentences()
    make("bert")[0].save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    encoder = st.SentenceTransformer(str(tmp_path), device="cpu")
    host = cw.Host(encoder[0].model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=4), i, 0.3)
    rows, names = ["a b", "c d e f g h i", "j k l", "m"], ["a", "b", None, "a"]
    want = []
    for row, name in zip(rows, names):
        with host.route(name):
            want.append(encoder.encode([row])[0])
    with host.route(names):
        for more in ({}, {"batch_size": 2}, {"convert_to_tensor": True}):
            got = encoder.encode(rows, **more)
            torch.testing.assert_close(torch.as_tensor(got), torch.tensor(want), rtol=1e-4, atol=1e-5)
        with pytest.raises(cw.CommonweightError, match="4 readers, there are 2 rows"):
            encoder.encode(rows[:2])
        with pytest.raises(cw.CommonweightError, match="other processes do not know the route"):
            encoder.encode(rows, device=["cpu", "cpu"])
