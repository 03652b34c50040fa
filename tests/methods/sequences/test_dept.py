"""DePT against longer inputs of the plain model whose vectors are moved by position."""

import copy
import math

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make
from tests.rows import generate_alone

SMALL = {"tokens": 3, "rank": 4, "length": 5}
VARIANTS = [{"start": "normal"}]


def written_out(plain, tenant, words, scale):
    """[E; X + scale A B], X of one row, A cut to its length."""
    E, A, B = (next(p for n, p in tenant.pools.items() if n.endswith(f".{k}")) for k in "EAB")
    moved = words.clone()
    for i in range(min(words.shape[1], len(A))):
        moved[:, i] = moved[:, i] + scale * (A[i] @ B)
    return torch.cat([E.expand(len(words), -1, -1), moved], 1)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("kind", ["llama", "qwen", "gpt2", "bert"])
def test_formula(kind, attention):
    """Of rows of six tokens five are moved."""
    model, batch = make(kind)
    model.set_attn_implementation(attention)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "dept", **SMALL, alpha=3.0), std=0.2)
    words = plain.get_input_embeddings()(batch["input_ids"])
    with torch.no_grad():
        want = plain(inputs_embeds=written_out(plain, tenant, words, 3.0 / math.sqrt(4)))[0][:, 3:]
        with host.route("t"):
            torch.testing.assert_close(answer(model, batch), want, rtol=1e-5, atol=1e-6)


def test_its_gradients_are_those_of_a_longer_input():
    model, batch = make("llama")
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "dept", **SMALL), std=0.2)
    with host.route(["t", None, "t", "t"]):
        answer(model, batch)[[0, 2, 3]].square().sum().backward()
    got = {n: p.grad.clone() for n, p in tenant.named_parameters()}
    for p in tenant.parameters():
        p.grad = None
    words = plain.get_input_embeddings()(batch["input_ids"][[0, 2, 3]]).detach()
    plain(inputs_embeds=written_out(plain, tenant, words, 8 / 2)).logits[:, 3:].square().sum().backward()
    for n, p in tenant.named_parameters():
        torch.testing.assert_close(got[n], p.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("said", [True, False])
def test_a_position_is_that_among_a_rows_own_tokens(said):
    """With padding on the left and from a cache, whether the caller says the positions or the mask does."""
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("t", "dept", **SMALL), 1, std=0.2)
    stir(host.add("u", "dept", tokens=5, rank=4, length=5), 2, std=0.2)
    ids, route, pad = batch["input_ids"], ["t", None, "u", "t"], [2, 1, 0, 3]
    mask = torch.stack([(torch.arange(6) >= n).long() for n in pad])
    places = (mask.cumsum(-1) - 1).clamp(min=0)

    def named(a, b):
        return {"position_ids": places[:, a:b]} if said else {}

    with torch.no_grad():
        with host.route(route):
            first = model(input_ids=ids[:, :4], attention_mask=mask[:, :4], use_cache=True, **named(0, 4))
            cache = first.past_key_values
            rest = model(input_ids=ids[:, 4:], attention_mask=mask, past_key_values=cache, **named(4, 6)).logits
        for i, (name, n) in enumerate(zip(route, pad)):
            with host.route(name):
                alone = model(input_ids=ids[i : i + 1, n:]).logits[0]
            got = torch.cat([first.logits[i, n:], rest[i]])
            if said or n == 0:  # else Llama itself counts padding
                torch.testing.assert_close(got, alone, rtol=1e-4, atol=1e-5)
            else:
                assert got.isfinite().all()


def test_generation_in_a_mixed_batch_padded_on_the_left():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("d", "dept", tokens=3, rank=4, length=20), 1, std=0.3)
    host.add("p", "prompt-tuning", tokens=5)
    generate_alone(
        host, batch["input_ids"], ["d", None, "p", "d"], {"cache_implementation": "static"}, {"use_cache": False}
    )


def test_the_grouped_form_is_the_plain_one():
    bind = cw.methods.sequences.dept.ByPosition(1.5)
    x, y = torch.tensor([[0, 1, 7, 2], [3, 0, 0, 9]])[..., None], torch.randn(2, 4, 6)
    A, B = torch.randn(2, 5, 3), torch.randn(2, 3, 6)
    each = [bind.output(x[i], y[i], None, A=A[i], B=B[i]) for i in range(2)]  # type: ignore[arg-type]
    torch.testing.assert_close(bind.grouped(x, y, None, A=A, B=B), torch.stack(each))  # type: ignore[arg-type]
    assert torch.equal(each[0][2], y[0, 2])


def test_count_is_the_papers():
    """The size of 100 vectors of T5-base."""
    sites = [cw.Site("e.prompt", 768, 768, "prompt"), cw.Site("e.positions", 768, 1, "positions")]
    assert cw.plan("dept", sites).count() == 100 * 768


def test_what_the_table_did_not_make():
    model, batch = make("llama")
    host = cw.Host(model)
    host.add("t", "dept", **SMALL)
    with host.route("t"), pytest.raises(cw.CommonweightError, match=r"is given inputs_embeds, .* give input_ids"):
        model(inputs_embeds=model.get_input_embeddings()(batch["input_ids"]))


def test_one_kind_of_site_alone():
    with pytest.raises(cw.CommonweightError, match=r"the 1 site of it are of kind prompt alone; .* take prompt-tuning"):
        cw.plan("dept", [cw.Site("e.prompt", 8, 8, "prompt")])


def test_tables_that_scale_are_moved_behind_it():
    """Gemma multiplies what the table gives: what positions bring is added to that."""
    torch.manual_seed(0)
    model = tf.GemmaForCausalLM(
        tf.GemmaConfig(
            hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            head_dim=8, vocab_size=61,
        )
    ).eval()  # fmt: skip
    plain, ids = copy.deepcopy(model), torch.randint(3, 61, (2, 6), generator=torch.Generator().manual_seed(1))
    host = cw.Host(model)
    tenant = stir(host.add("t", "dept", **SMALL), std=0.2)
    with torch.no_grad(), host.route("t"):
        got = model(input_ids=ids).logits
    with torch.no_grad():
        words = plain.get_input_embeddings()(ids)
        want = plain(inputs_embeds=written_out(plain, tenant, words, 8 / 2)).logits[:, 3:]
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)
