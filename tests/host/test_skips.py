"""Tokens that skip a part of a block: not computed, in their places again, and nobody else's affair."""

import pytest
import torch

import commonweight as cw
from commonweight.adapt.penalties import penalty
from commonweight.host import skips
from tests.host.padded import rows_are_those_alone
from tests.laws.subjects import stir
from tests.models import answer, make, shallow

FIRST = {"llama": "model.layers.0.mlp.up_proj", "bert": "encoder.layer.0.intermediate.dense", "vit": "layers.0.mlp.fc1"}


def seen(model, kind):
    """How many tokens come to the first layer of the first feed-forward part, pass by pass."""
    found = []
    layer = model.get_submodule(FIRST[kind])
    layer.register_forward_hook(lambda m, a, y: found.append(y.numel() // y.shape[-1]))
    return found


@pytest.mark.parametrize("kind", FIRST)
def test_skipped_tokens_are_not_computed(kind):
    model, batch = make(kind)
    host = cw.Host(model)
    stir(host.add("t", "dyt", size=4), std=0.3)
    many = seen(model, kind)
    with torch.no_grad():
        answer(model, batch)
        with host.route("t"):
            few = answer(model, batch)
    assert 0 < many[1] < many[0]
    with host.route("t"):  # where a graph is made all are computed, and the numbers are the same
        torch.testing.assert_close(answer(model, batch), few)
    assert many[2] == many[0]


@pytest.mark.parametrize("bias", [-100.0, 100.0])
@pytest.mark.parametrize("kind", [*FIRST, "moe", "t5", "gpt2"])
def test_no_token_or_every_token(kind, bias):
    model, batch = make(kind)
    host = cw.Host(model)
    tenant = host.add("t", "dyt", size=4)
    with torch.no_grad():
        for n, p in tenant.pools.items():
            if n.endswith("select_bias"):
                p.fill_(bias)
        base = answer(model, batch)
        with host.route("t"):
            found = answer(model, batch)
    assert found.isfinite().all()
    assert torch.allclose(found, base, atol=1e-6) == (bias > 0)


def test_a_batch_with_a_tenant_that_changes_the_layers_inside():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("skips", "dyt", size=4), std=0.3)
    stir(host.add("inside", "lora", sites="*.up_proj"), std=0.3)
    stir(host.add("beside", "lora", sites="*.q_proj"), std=0.3)
    many = seen(model, "llama")
    for readers in (["skips", "inside", None, "skips"], ["skips", "beside", None, "skips"]):
        many.clear()
        with torch.no_grad():
            with host.route(readers):
                mixed = answer(model, batch)
            total = batch["input_ids"].numel()
            assert many[0] == total if "inside" in readers else many[0] < total
            for i, name in enumerate(readers):
                with host.route(name):
                    alone = answer(model, {k: v[i : i + 1] for k, v in batch.items()})
                torch.testing.assert_close(mixed[i : i + 1], alone, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_generation_with_a_cache_and_padding_is_each_row_alone(kind):
    model, batch = make(kind)
    host = cw.Host(model)
    for i, name in enumerate(("one", "two")):
        stir(host.add(name, "dyt", size=4), i, std=0.3)
    ids, mask = batch["input_ids"].clone(), torch.ones_like(batch["input_ids"])
    ids[1, :2], mask[1, :2] = 0, 0
    told = dict(do_sample=False, max_new_tokens=4, min_new_tokens=4)
    readers = ["one", "two", None, "two"]
    with host.route(readers):
        cached, plain = (model.generate(ids, attention_mask=mask, use_cache=c, **told) for c in (True, False))
    assert torch.equal(cached, plain)
    for i, name in enumerate(readers):
        with host.route(name):
            start = 2 if i == 1 else 0
            alone = model.generate(ids[i : i + 1, start:], attention_mask=mask[i : i + 1, start:], **told)
        new = 4 if kind != "t5" else cached.shape[1]
        assert torch.equal(alone[:, -new:], cached[i : i + 1, -new:])


def test_a_reader_for_each_token():
    model, batch = make("llama")
    host = cw.Host(model)
    one, two = (stir(host.add(n, "dyt", size=4), i, std=0.3) for i, n in enumerate(("one", "two")))
    ids = batch["input_ids"]
    numbers = torch.tensor([one.number, two.number, -1, one.number])[:, None].expand(ids.shape)
    with torch.no_grad():
        with host.route(numbers):
            by_token = answer(model, batch)
        with host.route(["one", "two", None, "one"]):
            torch.testing.assert_close(by_token, answer(model, batch), rtol=1e-4, atol=1e-5)


def test_the_rate_of_each_tenant_is_of_its_own_tokens():
    """Of a batch of two tenants: each one's share of rows times the rate that it has alone; padding does not count."""
    model, batch = make("bert")
    host = cw.Host(model)
    tenants = [stir(host.add(n, "dyt", size=4), i) for i, n in enumerate(("one", "two"))]
    mask = torch.ones_like(batch["input_ids"])
    mask[0, 4:] = 0
    numbers = torch.tensor([tenants[0].number, tenants[1].number, tenants[0].number, tenants[0].number])
    with host.listening() as heard, host.route(numbers):
        model(**batch, attention_mask=mask)
        found = penalty(tenants, numbers, heard)
    want = 0.0
    for t, rows in zip(tenants, ([0, 2, 3], [1])):
        with host.listening() as alone, host.route(t.name):
            model(batch["input_ids"][rows], attention_mask=mask[rows])
        want = want + len(rows) / 4 * alone.loss(t)
        assert 0 < alone.loss(t) < 0.5
        assert sum(s.real.sum() for s in alone.said(t).values()) == 2 * mask[rows].sum()
    torch.testing.assert_close(found, want)
    found.backward()
    assert all(p.grad.abs().sum() > 0 for t in tenants for n, p in t.named_parameters() if n.endswith("select"))


def test_rows_of_unlike_tenants_that_skip_tokens_of_a_block_run_one_by_one():
    model, batch = make("bert")
    host = cw.Host(model)
    stir(host.add("one", "coda", size=3), 1, std=0.3)
    stir(host.add("two", "coda", size=3, reduction=3.0), 2, std=0.3)
    rows_are_those_alone(host, batch["input_ids"], ["one", None, "two", "one"])


def test_a_choice_of_tokens_in_a_packed_row_is_refused():
    model, batch = make("bert")
    host = cw.Host(model)
    one = stir(host.add("one", "coda", size=3), 1, std=0.3)
    numbers = torch.full(batch["input_ids"].shape, one.number)
    numbers[:, :2] = -1
    with torch.no_grad(), host.route(numbers), pytest.raises(cw.CommonweightError, match="route it per row"):
        answer(model, batch)


class Uneven:
    """A gate that keeps the first token of the first row, and all of the others."""

    def opens(self, x, base, there, **_):
        g = torch.ones(x.shape[:-1])
        g[0, 1:] = 0
        return g

    def output(self, x, y, base, **_):
        return y


def test_rows_that_keep_different_numbers_of_tokens_want_padding():
    model, batch = make("bert")
    host = cw.Host(model)
    tenant = host.add("t", "coda", size=3)
    for entries in tenant.table.values():
        entries[0].bind, entries[0].opens, entries[0].output = Uneven(), Uneven().opens, Uneven().output
    with (
        torch.no_grad(),
        host.route("t"),
        pytest.raises(cw.CommonweightError, match=r"rows keep \[1, 6, 6, 6\] tokens"),
    ):
        answer(model, batch)


@pytest.mark.parametrize("how", ["cached", "turned"])
def test_a_block_of_which_some_tokens_cannot_be_taken_out_is_given_all_or_refuses(how):
    """It reads a cache, or has tokens before rows: rows that skip as a whole are computed and left out."""
    model = make("llama")[0]
    at = cw.Host(model).base.modules["model.layers.0"]
    x = torch.randn(2, 3, 32)
    asked = {"mixed": False, "cached": how == "cached", "turned": how == "turned"}
    shut = torch.tensor([0.0, 1.0])[:, None, None].expand(2, 3, 1)
    skip = skips.block(at, x, shut, None, **asked)
    assert skip.given is x
    torch.testing.assert_close(skip.back(x + 1, "b", True), x + torch.tensor([0.0, 1.0])[:, None, None])
    shut = torch.tensor([0.0, 1.0, 1.0])[None, :, None].expand(2, 3, 1)
    with pytest.raises(cw.CommonweightError, match="use_cache=False" if how == "cached" else "tokens before rows"):
        skips.block(at, x, shut, None, **asked)


@pytest.mark.parametrize(("kind", "method"), [("llama", "dyt"), pytest.param("bert", "coda", marks=pytest.mark.slow)])
def test_a_compiled_model_gives_the_same(kind, method):
    model, batch = shallow(kind)
    host = cw.Host(model)
    stir(host.add("t", method, size=3), std=0.3)
    compiled = torch.compile(model, backend="eager")
    batch["attention_mask"] = torch.ones_like(batch["input_ids"])
    batch["attention_mask"][0, 4:] = 0
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(compiled, batch)[:, :4], answer(model, batch)[:, :4])
