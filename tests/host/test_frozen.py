"""The frozen layers' own products while somebody trains: another kernel, the same numbers."""

import copy
import pickle

import pytest
import torch
from torch import nn

import commonweight as cw
from commonweight.bind import products
from commonweight.host.frozen import Frozen
from commonweight.host.prepacked import prepack, unpack
from tests.laws.subjects import METHODS, can, model_of, small, stir
from tests.models import answer, make


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """On Intel's processors too, where they are right and not the faster ones."""
    monkeypatch.setattr(products, "_intel", lambda: False)
    if not products.at_hand():
        pytest.skip("this processor has no such products")


def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(512, 512), nn.GELU(), nn.Linear(512, 512, bias=False), nn.Linear(512, 512))


def rows() -> torch.Tensor:
    return torch.randn(1024, 512, generator=torch.Generator().manual_seed(1))


def gradients(base: nn.Sequential, host: cw.Host) -> list[torch.Tensor]:
    tenant = host["t"]
    with host.route("t"):
        y = base(rows())
        y.square().mean().backward()
    return [y.detach(), *(p.grad for p in tenant.parameters())]  # type: ignore[misc]


def test_a_step_has_the_numbers_of_the_layers_own(monkeypatch):
    found = {}
    for quick in (True, False):
        base = model()
        if not quick:
            monkeypatch.setattr("commonweight.host.frozen.large", lambda x, w: False)
        host = cw.Host(base)
        host.add("t", "lora", rank=8, sites="0|3")  # the layer between has no reader
        with torch.no_grad():
            for p in host["t"].parameters():
                p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())) / 20)
        found[quick] = gradients(base, host)
    for a, b in zip(found[True], found[False]):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
        assert a.abs().sum() > 0


def test_what_the_base_says_of_rows_has_these_products_too(monkeypatch):
    monkeypatch.setattr(products, "_LARGE", 0)
    model, batch = make("bert")
    host, calls, old = cw.Host(model), [], products._made
    host.add("t", "lora", rank=2)
    with torch.no_grad():
        want = model(**batch).last_hidden_state.mean(1)
    monkeypatch.setattr(products, "_made", lambda *a: calls.append(1) or old(*a))
    torch.testing.assert_close(host.base.queries.of_batch(model, batch), want, rtol=1e-4, atol=1e-5)
    made = len(calls)
    with torch.no_grad():
        model(**batch)
    assert made > 0 and len(calls) == made  # and no longer


def test_the_plain_base_and_a_pass_without_gradients_are_the_layers_own_to_the_bit():
    base = model()
    with torch.no_grad():
        want = base(rows())
    host = cw.Host(base)
    host.add("t", "lora", rank=8)  # B is zero
    assert torch.equal(base(rows()), want)
    with torch.no_grad(), host.route("t"):
        assert torch.equal(base(rows()), want)


def test_a_closed_host_leaves_nothing():
    base = model()
    host = cw.Host(base)
    assert [type(m.__dict__.get("forward")) for m in base] == [Frozen, type(None), Frozen, Frozen]
    host.close()
    assert all("forward" not in m.__dict__ for m in base)


def test_what_others_put_around_a_layers_forward_stays():
    base = model()
    host, seen = cw.Host(base), []
    own = base[0].forward
    base[0].forward = lambda x: seen.append(x) or own(x)
    host.add("t", "lora", rank=8)
    gradients(base, host)
    host.close()
    assert len(seen) == 1 and "forward" in base[0].__dict__
    base(rows())
    assert len(seen) == 2


def test_a_copy_of_a_model_runs_its_own_layers():
    base = model()
    host = cw.Host(base)
    host.add("t", "lora", rank=8)
    other = copy.deepcopy(base)
    with torch.no_grad():
        other[0].weight.zero_()
    assert other[0].__dict__["forward"].module is other[0]
    assert not torch.equal(other(rows()), base(rows()))


def test_packed_weights_of_an_engine_come_and_go():
    base = model()
    host = cw.Host(base)
    packed = prepack(base, True, lambda: False)
    assert len(packed) == 3
    unpack(packed)
    assert type(base[0].__dict__["forward"]) is Frozen
    host.close()
    assert all("forward" not in m.__dict__ for m in base)


@pytest.mark.parametrize("bias", [torch.ones(1), torch.ones(1).expand(512), torch.ones(1024)[::2]])
def test_a_bias_that_does_not_lie_as_usual(bias):
    base = model()
    base[0].bias = nn.Parameter(bias, requires_grad=False)
    host = cw.Host(base)
    host.add("t", "lora", rank=8)
    with host.route("t"):
        got = base[0](rows())
    torch.testing.assert_close(got, torch.nn.functional.linear(rows(), base[0].weight, bias), rtol=1e-4, atol=1e-5)


def test_an_input_of_another_width_is_the_layers_own_error():
    base = model()
    host = cw.Host(base)
    host.add("t", "lora", rank=8)
    with host.route("t"), pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        base[0](torch.zeros(1024, 768))


def test_a_host_that_is_closed_before_an_engine_leaves_nothing():
    base = model()
    host = cw.Host(base)
    packed = prepack(base, True, lambda: False)
    host.close()
    unpack(packed)
    assert all("forward" not in m.__dict__ for m in base)


def test_a_layer_is_pickled():
    base = model()
    cw.Host(base)
    again = pickle.loads(pickle.dumps(base[0]))
    assert torch.equal(again(rows()), base[0](rows()))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_trains_over_such_products(method, monkeypatch):
    """A layer's output is a tensor of its own, which a bind may write over."""
    kind, found = model_of(method), {}
    for at in (0, 1 << 60):
        monkeypatch.setattr(products, "_LARGE", at)
        monkeypatch.setattr(products, "_WIDE", at)
        base, batch = make(kind)
        host = cw.Host(base)
        if not can(method, host):
            pytest.skip(f"{method} reads nothing in a {kind}")
        tenant = stir(host.add("t", method, **small(method)))
        if not tenant.count():
            pytest.skip(f"{method} trains nothing here")
        torch.manual_seed(0)
        with host.route("t"):
            answer(base, batch).square().mean().backward()
        found[at] = [p.grad for p in tenant.parameters()]
    assert found[0]
    for a, b in zip(*found.values(), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_a_shallow_copy_of_a_layer_runs_its_own_product():
    base = model()
    host = cw.Host(base)
    host.add("t", "lora", rank=8, sites="0")
    twin = copy.copy(base[3])
    twin._parameters = {k: nn.Parameter(2 * p.detach(), requires_grad=False) for k, p in base[3]._parameters.items()}  # type: ignore[union-attr]
    x = rows().requires_grad_()
    with torch.no_grad():
        want, plain = nn.functional.linear(x, twin.weight, twin.bias), base[3](x)
        torch.testing.assert_close(twin(x), want)
        torch.testing.assert_close(copy.copy(base[3])(x), plain)  # with the layer's parameters it is the layer
    with host.route("t"):  # which reads elsewhere
        torch.testing.assert_close(twin(x), want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(base[3](x), plain, rtol=1e-4, atol=1e-4)
    host.add("u", "lora", rank=8, sites="3")
    with pytest.raises(cw.CommonweightError, match=r"3: a shallow copy of this layer"), host.route("u"):
        twin(x)
