"""Tables of tokens that are narrower than the model: at the input alone (RemBERT), and at both ends (SAFE's)."""

import json

import pytest
import torch
import transformers as tf

from commonweight import CommonweightError, Host, share
from tests.share.deep import IDS, KINDS, SIZE, TOKENS, answer, far, gpt2, llama, qwen
from tests.share.elsewhere import answers


@pytest.mark.parametrize("kind", KINDS)
def test_the_full_width_is_the_original(kind):
    model = KINDS[kind]()
    small = share.share(model, "rembert", rank=32)
    assert far(answer(small), answer(model)) < 2e-5
    assert far(answer(share.share(model, "rembert", rank=4)), answer(model)) > 1e-3


@pytest.mark.parametrize("make", [qwen, gpt2])
def test_both_ends_at_the_full_width_are_the_original(make):
    model = make()
    layout = dict(ends=0, init="first") if False else dict(ends=2)
    whole = share.share(model, "subformer", **layout)
    small = share.share(model, "subformer", **layout, reduction=32)
    assert far(answer(small), answer(whole)) < 2e-5


def test_the_formula():
    """E ~ U S V^T; the embedding of a token and its logits by hand."""
    model = qwen()
    small = share.share(model, "subformer", reduction=5)
    e = model.model.embed_tokens.weight.detach()
    u, s, v = torch.linalg.svd(e.double(), full_matrices=False)
    best = ((u[:, :5] * s[:5]) @ v[:5]).float()
    assert torch.allclose(small.model.embed_tokens(IDS), best[IDS], atol=1e-5)
    x = torch.randn(3, 32)
    assert torch.allclose(small.lm_head(x), x @ best.T, atol=1e-5)
    table, head = small.model.embed_tokens, small.lm_head
    assert table.table is head.table and table.map is not head.down and torch.equal(table.map, head.down)
    thin = share.share(model, "rembert", rank=5)
    assert torch.allclose(thin.model.embed_tokens(IDS), best[IDS], atol=1e-5)
    assert torch.equal(thin.lm_head.weight, e) and not hasattr(thin.model.embed_tokens, "weight_table")


def test_a_factor_of_the_layer_stays():
    config = tf.Gemma3TextConfig(num_hidden_layers=2, num_key_value_heads=2, head_dim=8, **SIZE, **TOKENS)
    torch.manual_seed(0)
    model = tf.Gemma3ForCausalLM(config).eval()
    assert far(answer(share.share(model, "rembert", rank=32)), answer(model)) < 2e-5


def test_bytes_are_those_of_the_plan():
    for make, method, options, more in (
        (qwen, "rembert", {"rank": 4}, 4 * (61 + 32)), (llama, "rembert", {"rank": 4}, 4 * (61 + 32) - 61 * 32),
        (qwen, "subformer", {"reduction": 4}, 4 * (61 + 2 * 32) - 61 * 32),
    ):  # fmt: skip
        model = make()
        plain = share.share(model, "subformer") if method == "subformer" else model
        small = share.share(model, method, **options)
        count = [sum(p.numel() for p in m.parameters()) for m in (plain, small)]
        assert count[1] == count[0] + more
        _, cost = share.plan(model, {method: [options]})
        assert (cost.parameters, cost.bytes) == (count[1], 4 * count[1])
    _, strict, thin = share.plan(qwen(), {"subformer": [{}, {"reduction": 4}]})
    assert strict.blocks == thin.blocks
    assert strict.flops == thin.flops + 2 * 61 * 32 - 2 * 4 * (61 + 2 * 32)


@pytest.mark.parametrize("method", ["rembert", "subformer"])
def test_saved_loaded_and_written_out(method, tmp_path):
    """Also in a process without commonweight, with and without the head."""
    model = qwen()
    small = share.share(model, method, **({"rank": 6} if method == "rembert" else {"reduction": 6}))
    folder = share.save(small, tmp_path / "s")
    again = share.load(folder)
    assert far(answer(again), answer(small)) == 0
    if method == "subformer":
        assert again.lm_head.table is again.model.embed_tokens.table
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    share.save(small, tmp_path / "u", "unrolled")
    assert far(answer(tf.AutoModelForCausalLM.from_pretrained(tmp_path / "u").eval()), answer(small)) < 1e-5
    found = answers(tmp_path, {
        "lm": ("AutoModelForCausalLM", str(folder), True, "float32"),
        "base": ("AutoModel", str(folder), True, "float32"),
    })  # fmt: skip
    assert far(found["lm"][0], answer(small)) < 1e-6 and found["lm"][1] == len(list(small.parameters()))
    with torch.no_grad():
        assert far(found["base"][0], small.model(IDS).last_hidden_state) < 1e-6
    with pytest.raises(CommonweightError, match="form="):
        share.save(small, tmp_path / "p", "peft")


def test_it_generates_trains_and_takes_tenants():
    small = share.share(qwen(), "subformer", reduction=6)
    how = dict(max_new_tokens=5, do_sample=False, pad_token_id=0)
    assert torch.equal(small.generate(IDS, **how), small.generate(IDS, **how, use_cache=False))
    before = small(IDS, labels=IDS).loss
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2)
    for _ in range(4):
        optimizer.zero_grad()
        small(IDS, labels=IDS).loss.backward()
        optimizer.step()
    assert small(IDS, labels=IDS).loss < before and small.lm_head.table is small.model.embed_tokens.table
    host = Host(small)
    host.add("t", "lora", rank=2)
    with torch.no_grad():
        plain = answer(small)
        with host.route("t"):
            assert far(answer(small), plain) == 0


def test_what_it_refuses():
    small = share.share(qwen(), "rembert", rank=4)
    with pytest.raises(CommonweightError, match="is a shared model already"):
        share.share(small, "recursive")
