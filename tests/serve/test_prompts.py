"""Tenants that go by the embedding of a request's prompt, served beside others in one batch."""

import pytest
import torch

import commonweight as cw
from commonweight.serve import Engine

from .served import add, ask, make, prompt, stir

SHARED = [9, 8, 10, 11, 5, 6, 12, 13]


def host():
    out = cw.Host(make("llama"))
    for n in "ab":
        add(out, n)
    add(out, "t", "psec", over=["a", "b"], hidden=5, context="row")
    stir(out, "t", 1.0)
    add(out, "p", "poly", tasks="x,y", skills=3, rank=2)
    add(out, "s", "psec", over=["p", "a"], hidden=5, context="row")
    return out


def plain(host, request):
    """What `generate` answers, with its cache."""
    ids = torch.tensor([list(request.prompt)], device=host.model.device)
    with torch.no_grad(), host.route(request.tenant, tasks=request.task):
        out = host.model.generate(ids, do_sample=False, eos_token_id=None, max_new_tokens=request.max_new_tokens)
    return out[0, ids.shape[1] :].tolist()


def test_a_request_is_what_generate_answers():
    """Prompts in several steps, a prefix that others have too, a cache that has seen the prompt, other tenants."""
    model = host()
    asked = [ask("t", prompt=[*SHARED, 3 + i, 40]) for i in range(3)]
    asked += [ask("t", prompt=prompt(3, 30)), ask("a", i=1), ask(None, i=2), ask("p", i=1, task="y")]
    asked += [ask("s", prompt=prompt(2, 9), task=k) for k in "xy"]
    want = [plain(model, r) for r in asked]
    assert len({tuple(w) for w in want[:3]}) > 1
    with Engine(model, max_requests=8, max_batch_tokens=16, page_size=4) as engine:
        for again in (False, True):
            got = engine.generate(asked)
            assert [g.error for g in got] == [None] * len(asked)
            assert [g.tokens for g in got] == want
            assert all((g.cached_tokens > 0) == again for g in got[:4])  # of its own prompt alone
        both = engine.generate([ask("t", prompt=SHARED, n=2)])[0]  # a step of one tenant
        assert [c.tokens for c in both.choices] == [plain(model, ask("t", prompt=SHARED))] * 2


def test_a_text_that_is_only_scored_has_no_prompt():
    from commonweight.serve.scoring import score

    model = host()
    with Engine(model, max_requests=2, max_batch_tokens=16, page_size=4) as engine:
        edition = engine.tenants.edition("t")
        with pytest.raises(cw.CommonweightError, match="nothing says where the prompt ends"):
            score(model, edition, SHARED, 0)


def test_prompts_that_a_request_asks_a_pool_for_are_those_of_generate():
    model = cw.Host(make("gpt2"))
    add(model, "a")
    add(model, "t", "prompt-pool", query="embeddings", prompts=4, tokens=3, top=1)
    stir(model, "t", 1.0)
    asked = [ask("t", prompt=[*SHARED, 3 + 9 * i, 40]) for i in range(3)] + [
        ask("t", prompt=prompt(3, 30)),
        ask("a", i=1),
    ]
    with Engine(model, max_requests=8, max_batch_tokens=16, page_size=4) as engine:
        for _ in range(2):
            assert [g.tokens for g in engine.generate(asked)] == [plain(model, r) for r in asked]
