"""Tenants that read whole rows, which no cache holds: a network beside the trunk, queries."""

from __future__ import annotations

import pytest
import torch

import commonweight as cw
from commonweight.serve import Engine
from tests.laws.subjects import METHODS, can, small

from .served import add, ask, make, prompt, right


def whole(host: cw.Host) -> list[str]:
    found = []
    for name in METHODS:
        if can(name, host):
            if not host.add(name, name, **small(name)).tokenwise:
                found.append(name)
            host.remove(name)
    return found


@pytest.fixture(scope="module")
def host():
    host = cw.Host(make())
    for name in whole(host):
        add(host, name, name, **small(name))
    add(host, "lora", "lora")
    return host


def test_there_are_some(host):
    assert {"lst", "vqt", "rpo"} <= {*host}


@pytest.mark.parametrize("others", [[], [None, "lora"]])
def test_each_is_the_tenant_alone(host, others):
    """By log probabilities: several answers of one tenant, alone in the batch and beside others."""
    with Engine(host, max_requests=6, max_batch_tokens=16, page_size=8) as engine:
        for name in [n for n in host if n != "lora"]:
            asked = [ask(t, i, max_new_tokens=4, logprobs=1) for i, t in enumerate([name, name, *others])]
            for i, (request, answer) in enumerate(zip(asked, engine.generate(asked), strict=True)):
                assert answer.error is None
                text = prompt(i) + answer.tokens
                with torch.no_grad(), host.route(request.tenant):
                    # a step at a time: queries of a row answer its last token alone
                    logits = [
                        host.model(input_ids=torch.tensor([text[:n]]), use_cache=False).logits[0, -1]
                        for n in range(len(text) - 4, len(text))
                    ]
                want = torch.stack(logits).log_softmax(-1)[range(4), answer.tokens]
                got = torch.tensor([x.logprob for x in answer.logprobs])
                torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_a_share_that_falls_from_where_an_answer_begins():
    """It goes by places of the text, which a packed step does not tell."""
    host = cw.Host(make())
    add(host, "falls", "pema", rank=4, alpha=4.0, share=1.0, length=6, invocation=(5, 6))
    add(host, "even", "pema", rank=4, alpha=4.0)
    add(host, "lora", "lora")
    texts = [9, 8, 5, 6], [5, 6, 11, 12], [20, 21, 22, 5, 6, 7]
    asked = [ask(t, prompt=p, max_new_tokens=8) for t in ("falls", "even", "lora", None) for p in texts]
    with Engine(host, max_requests=12, max_batch_tokens=24, page_size=4) as engine:
        right(host, asked, engine.generate(asked))
