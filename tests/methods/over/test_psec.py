"""PSEC against its formula: one network, on what the layer's first site is given."""

import pytest
import torch

import commonweight as cw
from tests.host.test_running import checkpoint
from tests.laws.subjects import stir
from tests.models import make

from .below import stand


def test_formula():
    seen = {}
    _, t, x, _, added, pairs = stand("psec", hidden=5, seen=seen)
    p = {k.rpartition(".")[2]: v.detach() for k, v in t.pools.items() if k.startswith("state32")}
    z = seen["z"]
    a = torch.relu(z @ p["W1"].T + p["b1"]) @ p["W2"].T + p["b2"]
    want = sum(a[..., i, None] * (x @ A.T @ B.T) for i, (A, B) in enumerate(pairs))
    torch.testing.assert_close(added, want, rtol=1e-4, atol=1e-5)
    assert a.min() < 0 or a.max() > 1
    assert t.count() == 5 * (32 + 1) + 3 * (5 + 1)


def test_it_begins_with_the_mean():
    _, _, x, _, added, pairs = stand("psec", stirred=False)
    torch.testing.assert_close(added, sum(x @ A.T @ B.T for A, B in pairs) / 3, rtol=1e-4, atol=1e-5)


def test_of_a_row_there_is_one_weight_a_skill():
    """By the mean of its input embeddings, padding aside: in every layer, for every token, whoever is beside it."""
    model, batch = make("bert")
    mask = torch.ones_like(batch["input_ids"])
    mask[1, 4:] = 0
    host = cw.Host(model)
    for i, n in enumerate("ab"):
        stir(host.add(n, "lora", rank=2, sites="*query"), i)
    t = stir(host.add("t", "psec", over=["a", "b"], hidden=5, context="row"), 7)
    p = {k.rpartition(".")[2]: v.detach() for k, v in t.pools.items() if k.startswith("state32")}
    assert t.count() == 5 * (32 + 1) + 2 * (5 + 1)
    table = model.embeddings.word_embeddings.weight.detach()
    z = torch.stack([table[i[: m.sum()]].mean(0) for i, m in zip(batch["input_ids"], mask)])
    a = torch.relu(z @ p["W1"].T + p["b1"]) @ p["W2"].T + p["b2"]
    at, seen = model.encoder.layer[1].attention.self.query, []
    handle = at.register_forward_hook(lambda m, args, y: seen.append((args[0], y)))
    with torch.no_grad(), host.route("t"):
        alone = model(**batch, attention_mask=mask).last_hidden_state
    handle.remove()
    ((x, y),) = seen
    name = "encoder.layer.1.attention.self.query"
    low = [x @ host[n].pools[f"{name}.A"].detach().T @ host[n].pools[f"{name}.B"].detach().T * 2 for n in "ab"]
    with torch.no_grad():
        want = x @ at.weight.T + at.bias + sum(a[:, i, None, None] * u for i, u in enumerate(low))
    torch.testing.assert_close(y, want, rtol=1e-4, atol=1e-5)
    with torch.no_grad(), host.route(["a", "t", None, "t"]):
        mixed = model(**batch, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(mixed[1, :4], alone[1, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[3], alone[3], rtol=1e-4, atol=1e-5)
    got, to = [], torch.randn_like(alone)
    for checkpointed in (False, True):
        if checkpointed:
            checkpoint(model, False)
        model.train()
        torch.manual_seed(0)
        for q in t.parameters():
            q.grad = None
        with host.route("t"):
            loss = model(**batch, attention_mask=mask).last_hidden_state.mul(to).sum()
        loss.backward()
        got.append([q.grad.clone() for q in t.parameters()])
    for one, two in zip(*got):
        torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-4 * float(one.abs().max()))


def test_a_row_is_no_context_where_tokens_see_no_later_one():
    """A trunk that answers nothing has no prompts either; for those of a decoder see tests/host/test_prompts.py."""
    host = cw.Host(make("llama")[0].model)
    host.add("a", "lora")
    with pytest.raises(cw.CommonweightError, match="goes by the whole row would tell it what comes after"):
        host.add("t", "psec", over=["a"], context="row")


def test_embeddings_narrower_than_layers():
    from transformers import AlbertConfig, AlbertModel

    size = dict(vocab_size=40, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2)
    host = cw.Host(AlbertModel(AlbertConfig(embedding_size=16, **size)))
    host.add("a", "lora")
    host.add("t", "psec", over=["a"], context="row")
    with host.route("t"), pytest.raises(cw.CommonweightError, match=r"embedding is 16 wide in this model.* reads 32"):
        host.model(torch.arange(6)[None])
