"""Weighted sums of tenants: each answers as the model whose weights are changed by the same sum."""

from __future__ import annotations

import pytest
import torch

from commonweight.core import CommonweightError
from commonweight.host import Host
from commonweight.serve import Engine
from commonweight.serve.blend import terms
from commonweight.serve.tenants import Tenants

from .served import add, alone, ask, make


@pytest.fixture(scope="module")
def host():
    found = Host(make())
    for name, method in (("a", "lora"), ("b", "ia3"), ("c", "dora"), ("d", "mos"), ("plug", "bottleneck")):
        add(found, name, method)
    return found


def summed(host, name):
    """A host whose base is the sum."""
    found = make()
    weights = dict(found.named_parameters())
    with torch.no_grad():
        plain = {n: p.clone() for n, p in weights.items()}
        for tenant, weight in terms(name).items():
            for n, changed in host.merged(tenant).items():
                weights[n].add_(weight * (changed - plain[n]))
    return Host(found)


@pytest.mark.parametrize("name", ["a+0.5*c", "a+-1*d", "0.3*b", "0.7*a+0.3*b", "a+a", "1*c", "c+d+0.2*a"])
def test_a_sum_answers_as_the_sum_of_the_weights(host, name):
    want = summed(host, name)
    with Engine(host, max_requests=4, page_size=8) as engine:
        asked = [ask(t, i) for i, t in enumerate([name, "a", name, None])]
        answers = engine.generate(asked)
    for request, answer in zip(asked, answers, strict=True):
        reads = ask(None, prompt=request.prompt) if request.tenant == name else request
        assert answer.error is None and answer.tokens == alone(want if request.tenant == name else host, reads)


def test_a_sum_is_made_once_and_again_when_a_tenant_has_changed(host):
    with Engine(host, page_size=8) as engine:
        one, other = (engine.tenants.edition(n) for n in ("a+0.5*c", "0.5*c + 1*a"))
        assert one is other and one is not engine.tenants.edition("a+0.6*c")
        with torch.no_grad():
            next(host["c"].parameters()).add_(0.0)
        assert engine.tenants.edition("a+0.5*c") is not one


WRONG = {
    "plug": ("a+plug", r"tenant 'plug' \(bottleneck\) cannot be added"),
    "scales": ("b+c", "one of these tenants scales the inputs there and one the outputs"),
    "weight": ("x*a+b", "'x' is no weight; write a.0.5.b"),
    "minus": ("a-0.5*b", "'a-0.5' is no weight"),
    "large": ("1000*a", "wanted -100 to 100"),
    "empty": ("a+", "cannot be a tenant's name"),
    "two": ("2*3*a", "no tenant with a weight"),
    "name": ("a+../b", "cannot be a tenant's name"),
    "many": ("+".join(f"t{i}" for i in range(9)), "at most 8"),
    "nobody": ("a+0.5*nobody", "unknown tenant"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_has_no_sum_is_told(host, case):
    name, told = WRONG[case]
    with pytest.raises(CommonweightError, match=told):
        Tenants(host, None, None).edition(name)


def test_ranks_add_up_to_a_limit(host):
    for i in range(4):
        add(host, f"w{i}", "lora", rank=40)
    with pytest.raises(CommonweightError, match="rank 160 together; at most 128"):
        Tenants(host, None, None).edition("w0+w1+w2+w3")


def test_why_there_is_no_sum():
    host = Host(make("mixtral"))
    add(host, "all", "lora")
    add(host, "few", "lora", sites="*.self_attn.*")
    add(host, "wide", "lora", rank=80, sites="*.q_proj")
    add(host, "router", "lora", sites="*.mlp.gate")
    add(host, "plug", "bottleneck", sites="*.q_proj")
    tenants = Tenants(host, None, None)
    assert tenants.edition("few+0.5*few") is not None
    for name, told in (
        ("all", r"it changes experts \(model.layers.0.mlp.experts"),
        ("wide", "its rank at model.layers.0.self_attn.q_proj is 80, and at most 64"),
        ("router", "it changes model.layers.0.mlp.gate, which is no linear layer's weight"),
        ("plug", "its change of model.layers.0.self_attn.q_proj is no low-rank change, scale or shift"),
    ):
        with pytest.raises(CommonweightError, match=rf"tenant '{name}' .* cannot be added to others: {told}"):
            tenants.edition(f"few+0.5*{name}")
