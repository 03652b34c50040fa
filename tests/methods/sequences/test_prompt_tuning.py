"""Prompt tuning against longer inputs of the plain model."""

import copy

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"tokens": 5}
VARIANTS = [{"start": "first"}, {"start": "normal"}]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2", "moe", "bert"])
def test_it_is_a_longer_input(kind, attention):
    model, batch = make(kind)
    model.set_attn_implementation(attention)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "prompt-tuning", tokens=3))
    (E,) = tenant.pools.values()
    words = plain.get_input_embeddings()(batch["input_ids"])
    with torch.no_grad():
        want = plain(inputs_embeds=torch.cat([E.expand(4, -1, -1), words], 1))[0][:, 3:]
        with host.route("t"):
            torch.testing.assert_close(answer(model, batch), want, rtol=1e-5, atol=1e-6)


def test_its_gradient_is_that_of_a_longer_input():
    model, batch = make("llama")
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = host.add("t", "prompt-tuning", tokens=3)
    (E,) = tenant.parameters()
    with host.route(["t", None, "t", "t"]):
        answer(model, batch)[[0, 2, 3]].square().sum().backward()
    again = E.detach().clone().requires_grad_()
    words = plain.get_input_embeddings()(batch["input_ids"][[0, 2, 3]])
    plain(inputs_embeds=torch.cat([again.expand(3, -1, -1), words], 1)).logits[:, 3:].square().sum().backward()
    torch.testing.assert_close(E.grad, again.grad, rtol=1e-4, atol=1e-5)


def test_how_it_starts():
    model, _ = make("llama")
    host = cw.Host(model)
    table = model.get_input_embeddings().weight
    (first,) = host.add("f", "prompt-tuning", tokens=3, start="first").pools.values()
    (words,) = host.add("w", "prompt-tuning", tokens=3).pools.values()
    assert torch.equal(first, table[:3])
    assert all(any(torch.equal(w, entry) for entry in table) for w in words)


def test_generation_beside_a_prefix_and_the_plain_base():
    model, batch = make("llama")
    host = cw.Host(model)
    host.add("prompt", "prompt-tuning", tokens=5)
    host.add("prefix", "prefix-tuning", tokens=2)

    def generate(route, ids):
        with host.route(route):
            out = model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=4, do_sample=False, num_beams=2
            )
        return out.tolist()

    ids, route = batch["input_ids"], ["prompt", None, "prefix", "prompt"]
    assert generate(route, ids) == [generate(r, ids[i : i + 1])[0] for i, r in enumerate(route)]


def test_where_no_prompt_can_stand():
    with pytest.raises(cw.CommonweightError, match=r"of kind prompt, and no prompt .*: it names no table"):
        cw.Host(make("vit")[0]).add("t", "prompt-tuning")


@pytest.mark.parametrize("method", ["prompt-tuning", "p-tuning"])
def test_what_leads_is_of_encoders(method):
    with pytest.raises(cw.CommonweightError, match=f"{method}: leads is of encoders, .* at model.embed_tokens.prompt"):
        cw.Host(make("llama")[0]).add("t", method, leads=True)
