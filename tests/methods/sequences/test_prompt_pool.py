"""The pool of prompts against attention and cosines written out row by row."""

import pytest
import torch

import commonweight as cw
from commonweight.bind import PromptPool
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"prompts": 4, "tokens": 3, "top": 2, "read": "weighed"}
SOFT = SMALL
VARIANTS = [{"read": "top"}, {"read": "attended", "parts": 2}]
MODEL = "bert"
NAME = "encoder.layer.0.attention.self.prefix"


def READS(site):
    return site.role != "causal"


def cosine(a, b):
    return float(a @ b / (a.norm() * b.norm()))


def chosen(read, top, pools, x):
    """Keys and values (m', w) of a row whose query is x, by plain sums; two parts of attended, one of the others."""
    home = NAME if read == "attended" else "pool"
    parts = 2 if read == "attended" else 1
    P, K = ([t for i in range(parts) for t in pools[f"{h}.{n}{i}"].detach()] for h, n in ((NAME, "P"), (home, "K")))
    A = [t for i in range(parts) for t in pools[f"{home}.A{i}"].detach()] if read == "attended" else None
    says = [cosine(x * A[p] if A else x, K[p]) for p in range(len(K))]
    if read == "top":
        best = sorted(range(len(K)), key=lambda p: -says[p])[:top]
        return torch.cat([P[p][0] for p in best]), torch.cat([P[p][1] for p in best])
    return sum(c * p[0] for c, p in zip(says, P)), sum(c * p[1] for c, p in zip(says, P))


@pytest.mark.parametrize("options", [SMALL, {**SMALL, **VARIANTS[0]}, {**SMALL, **VARIANTS[1]}])
def test_formula_in_one_layer_row_by_row(options):
    model, batch = make("bert")
    mask = torch.ones_like(batch["input_ids"])
    mask[1, 4:] = 0
    with torch.no_grad():
        queries = [
            model(input_ids=i[None, : m.sum()]).last_hidden_state[0].mean(0) for i, m in zip(batch["input_ids"], mask)
        ]
    host = cw.Host(model)
    t = stir(host.add("t", "prompt-pool", **options))
    at = model.encoder.layer[0].attention.self
    got = []
    handle = at.register_forward_hook(lambda m, args, y: got.append((args[0], y[0])))
    with torch.no_grad(), host.route("t"):
        model(**batch, attention_mask=mask)
    handle.remove()
    (x, y) = got[-1]
    assert len(got) == 2  # the base alone first
    for i, (query, n) in enumerate(zip(queries, mask.sum(1).tolist())):
        pk, pv = chosen(options["read"], 2, t.pools, query)
        with torch.no_grad():
            q, k, v = (f(x[i, :n]) for f in (at.query, at.key, at.value))
            k, v = torch.cat([pk, k]), torch.cat([pv, v])
            q, k, v = (z.view(-1, 4, 8).transpose(0, 1) for z in (q, k, v))
            want = (torch.softmax(q @ k.mT / 8**0.5, -1) @ v).transpose(0, 1).reshape(n, 32)
        torch.testing.assert_close(y[i, :n], want, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("options", [SMALL, {**SMALL, **VARIANTS[0]}])
def test_a_row_may_be_told_by_its_embeddings(options):
    """One pass, and the query is the mean of the entries of the table; in mixed batches and under checkpoints too."""
    model, batch = make("bert")
    mask = torch.ones_like(batch["input_ids"])
    mask[1, 4:] = 0
    table = model.embeddings.word_embeddings.weight.detach()
    queries = [table[i[: m.sum()]].mean(0) for i, m in zip(batch["input_ids"], mask)]
    host = cw.Host(model)
    t = stir(host.add("t", "prompt-pool", query="embeddings", **options))
    stir(host.add("l", "lora", sites="*query"))
    at, got = model.encoder.layer[0].attention.self, []
    handle = at.register_forward_hook(lambda m, args, y: got.append((args[0], y[0])))
    with torch.no_grad(), host.route("t"):
        alone = model(**batch, attention_mask=mask).last_hidden_state
    handle.remove()
    ((x, y),) = got
    for i, (query, n) in enumerate(zip(queries, mask.sum(1).tolist())):
        pk, pv = chosen(options["read"], 2, t.pools, query)
        with torch.no_grad():
            q, k, v = (f(x[i, :n]) for f in (at.query, at.key, at.value))
            q, k, v = (z.view(-1, 4, 8).transpose(0, 1) for z in (q, torch.cat([pk, k]), torch.cat([pv, v])))
            want = (torch.softmax(q @ k.mT / 8**0.5, -1) @ v).transpose(0, 1).reshape(n, 32)
        torch.testing.assert_close(y[i, :n], want, rtol=1e-5, atol=1e-6)
    with torch.no_grad(), host.route(["l", "t", None, "t"]):
        mixed = model(**batch, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(mixed[1, :4], alone[1, :4], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixed[3], alone[3], rtol=1e-4, atol=1e-5)


def test_first_values_are_those_of_the_codes():
    host = cw.Host(make("bert")[0])
    for read, high in (("top", 0.01), ("weighed", 1.0)):
        for p in host.add(read, "prompt-pool", **{**SMALL, "read": read}).parameters():
            assert 0 <= p.min() and high / 2 < p.max() < high
    for p in host.add("attended", "prompt-pool", **{**SMALL, "read": "attended", "parts": 2}).parameters():
        torch.testing.assert_close(p.flatten(1) @ p.flatten(1).T, torch.eye(len(p)))


def test_a_row_is_not_given_what_most_of_its_batch_take():
    """models/prompt.py of the official code with `batchwise_prompt`, which its configurations set."""
    keys, rows = torch.eye(4), torch.tensor([[9.0, 8, 1, 0], [8.0, 9, 0, 1], [0.0, 1, 9, 8]])
    said = PromptPool(top=2).cosines(rows, K0=keys, P0=torch.zeros(4, 2, 1, 4))
    each = said.topk(2).indices
    names, counts = each.unique(return_counts=True)
    theirs = names[counts.topk(2).indices].expand(3, -1)
    assert [{*r} for r in each.tolist()] == [{0, 1}, {0, 1}, {2, 3}] and {*theirs[2].tolist()} == {0, 1}
    P = torch.arange(32.0).view(4, 2, 1, 4)
    k, v = PromptPool(top=2).ahead(rows, K0=keys, P0=P)
    assert torch.equal(k, P[each][:, :, 0, 0]) and torch.equal(v, P[each][:, :, 1, 0])


@pytest.mark.parametrize("read", ["top", "weighed"])
def test_the_pull_is_the_mean_distance_to_the_keys_that_count(read):
    model, batch = make("bert")
    host = cw.Host(model)
    t = host.add("t", "prompt-pool", **{**SMALL, "read": read, "parts": 2, "pull": 0.25})
    with torch.no_grad():
        queries = model(**batch).last_hidden_state.mean(1)
    keys = torch.cat([t.pools["pool.K0"], t.pools["pool.K1"]]).detach()
    far = [
        sorted(1 - cosine(x, k) for k in keys)[:2] if read == "top" else [1 - cosine(x, k) for k in keys[4:]]
        for x in queries
    ]
    with host.listening() as heard, host.route("t"):
        answer(model, batch)
    want = 0.25 * sum(map(sum, far)) / len(far)
    assert heard.loss(t).item() == pytest.approx(want, rel=1e-5)


def test_dropout_does_not_reach_the_query_and_training_goes_on():
    model, batch = make("bert")
    host = cw.Host(model)
    t = host.add("t", "prompt-pool", **SMALL)
    said = []
    for mode in (False, True):
        model.train(mode)
        with host.listening() as heard, host.route("t"):
            answer(model, batch)
        said.append(next(iter(heard.said(t).values())).logits)
        assert model.encoder.layer[0].attention.self.training is mode
    assert torch.equal(*said)


def test_checkpoints_find_the_rows_again():
    grads = []
    for on in (False, True):
        model, batch = make("bert")
        if on:
            model.activation_checkpointing_enable()
        host = cw.Host(model)
        t = stir(host.add("t", "prompt-pool", **SMALL))
        model.train()
        for m in model.modules():
            if isinstance(m, torch.nn.Dropout):
                m.p = 0.0
        with host.route("t"):
            loss = answer(model, batch).square().sum()
        loss.backward()
        grads.append({n: p.grad for n, p in t.named_parameters()})
    for n, g in grads[0].items():
        torch.testing.assert_close(grads[1][n], g)


def test_a_decoder_is_refused():
    host = cw.Host(make("llama")[0])
    with pytest.raises(cw.CommonweightError, match=r"at model.layers.0.self_attn.prefix no token sees a later one"):
        host.add("t", "prompt-pool")


def test_count():
    sites = [cw.Site(f"layer.{i}.prefix", 64, 16, "prefix", "", False) for i in range(3)]
    assert cw.plan("prompt-pool", sites).count() == 10 * (2 * 5 * 64 * 3 + 64)
    assert cw.plan("prompt-pool", sites, read="attended", parts=2).count() == 2 * 10 * 3 * (2 * 5 * 64 + 2 * 64)
    wide = [*sites, cw.Site("layer.3.prefix", 32, 16, "prefix", "", False)]
    with pytest.raises(cw.CommonweightError, match=r"layer.3.prefix: its keys are 32 wide, those before 64"):
        cw.plan("prompt-pool", wide)


@pytest.mark.parametrize("read", ["top", "weighed", "attended"])
def test_an_attention_of_fewer_keys_is_refused_when_it_is_added(read):
    """A row is told by as many numbers as a token's entry has."""
    model, _ = make("llama")
    host = cw.Host(model)
    assert any(s.kind == "prefix" and s.out < model.config.hidden_size for s in host.base.every)
    with pytest.raises(cw.CommonweightError, match=r"told by is \d+ wide, the keys of its attention \d+; "):
        host.add("t", "prompt-pool", query="embeddings", read=read)
    assert not list(host)
