"""Read-only prompts against the release's masks: prompts as further tokens, whose columns nobody sees."""

import copy

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make
from tests.rows import are_alone

SMALL = {"tokens": 3}


def longer(blocks, states, prompts, there):
    """What the blocks make of [states; prompts], where all rows see the tokens that are there and no prompt."""
    n, k = states.shape[1], len(prompts)
    x = torch.cat([states, prompts.expand(len(states), -1, -1)], 1)
    mask = torch.full((len(states), 1, n + k, n + k), torch.finfo(x.dtype).min)
    mask[:, :, :, :n] = torch.where(there[:, None, None].bool(), 0.0, torch.finfo(x.dtype).min)
    for block in blocks:
        y = block(x, attention_mask=mask)
        x = y[0] if isinstance(y, tuple) else y
    return x


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_formula(attention):
    model, batch = make("bert")
    model.set_attn_implementation(attention)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "rpo", **SMALL), std=0.5)
    (P,) = tenant.pools.values()
    there = torch.ones_like(batch["input_ids"])
    there[1, 4:] = there[2, :2] = 0
    with torch.no_grad():
        x = longer(plain.encoder.layer, plain.embeddings(batch["input_ids"]), P, there)
        base = plain(**batch, attention_mask=there).last_hidden_state
        torch.testing.assert_close(x[:, :6][there.bool()], base[there.bool()], rtol=1e-4, atol=1e-5)
        with host.route("t"):
            got = model(**batch, attention_mask=there).last_hidden_state
    torch.testing.assert_close(got, x[:, 6:].mean(1, keepdim=True).expand(-1, 6, -1), rtol=1e-4, atol=1e-5)


def test_its_gradient_is_that_of_further_tokens():
    model, batch = make("bert")
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "rpo", **SMALL), std=0.5)
    (P,) = tenant.parameters()
    with host.route(["t", None, "t", None]):
        answer(model, batch)[[0, 2], 0].square().sum().backward()
    again, rows = P.detach().clone().requires_grad_(), batch["input_ids"][[0, 2]]
    x = longer(plain.encoder.layer, plain.embeddings(rows), again, torch.ones_like(rows))
    x[:, 6:].mean(1).square().sum().backward()
    torch.testing.assert_close(P.grad, again.grad, rtol=1e-4, atol=1e-5)


def test_prompts_do_not_read_each_other():
    """The mean of two is the mean of what each says alone."""
    model, batch = make("vit")
    host = cw.Host(model)
    both, one, two = (stir(host.add(n, "rpo", tokens=t), std=0.5) for n, t in (("b", 2), ("1", 1), ("2", 1)))
    (P,), (p,), (q,) = (t.pools.values() for t in (both, one, two))
    with torch.no_grad():
        p.copy_(P[:1])
        q.copy_(P[1:])
        said = []
        for name in "b12":
            with host.route(name):
                said.append(model(**batch, output_hidden_states=True).hidden_states[-1])
    torch.testing.assert_close(said[0], (said[1] + said[2]) / 2, rtol=1e-4, atol=1e-5)


def test_beside_queries_that_do_not_follow():
    model, batch = make("bert")
    host = cw.Host(model)
    stir(host.add("r", "rpo", tokens=3), 1, std=0.3)
    stir(host.add("v", "vqt", queries=2, size=3), 2, std=0.3)
    stir(host.add("s", "rpo", tokens=5), 3, std=0.3)
    are_alone(host, batch, ["r", "v", None, "s"])


def test_a_cache_is_refused():
    model, batch = make("llama")
    host = cw.Host(model)
    host.add("t", "rpo", **SMALL)
    with host.route("t"), pytest.raises(cw.CommonweightError, match="generate with use_cache=False"):
        model.generate(**batch, attention_mask=torch.ones_like(batch["input_ids"]), max_new_tokens=3)


def test_count_is_the_papers():
    """K 24 in both of CLIP's towers: 30,720."""
    sites = [cw.Site(f"{n}.queries", d, 12 * d, "queries") for n, d in (("text", 512), ("vision", 768))]
    assert cw.plan("rpo", sites).count() == 30_720
