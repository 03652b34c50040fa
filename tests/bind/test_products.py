"""Other products of the same numbers: equal within float32's rounding, with the same derivatives."""

import pytest
import torch
from torch import Tensor

from commonweight.bind import products

LARGE = (1024, 512, 512)  # rows, in, out


@pytest.fixture(autouse=True)
def taken(monkeypatch):
    """On Intel's processors too, where they are right and not the faster ones."""
    monkeypatch.setattr(products, "_intel", lambda: False)
    if not products.at_hand():
        pytest.skip("this processor has no such products")


def numbers(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shape", [LARGE, (3, 8, 4)])
def test_a_gradient_through_a_frozen_weight(shape, turned):
    rows, inp, out = shape
    g, w = numbers(rows, out), numbers(inp, out).T if turned else numbers(out, inp)
    want = (g.double() @ w.double()).float()
    with torch.no_grad():
        close(products.times(g, w), want)
        close(products.times(g.T.contiguous().T, w), want)
    assert torch.autograd.grad(products.times(g.requires_grad_(), w).sum(), g)[0].shape == g.shape


@pytest.mark.parametrize("wide", [4, 1 << 17])
@pytest.mark.parametrize("turned", [False, True])
def test_products_with_a_rank(wide, turned):
    a, x = numbers(5, 8), numbers(wide, 8)
    with torch.no_grad():
        close(products.thin(a.mT.contiguous().mT if turned else a, x), a @ x.mT)
        b, y = numbers(5, wide), numbers(8, wide)
        close(products.thin(b, y.mT.contiguous().mT if turned else y), (b.double() @ y.double().mT).float())


def test_where_derivatives_of_derivatives_are_asked_for_they_are_there():
    a, x = numbers(2, 1 << 20).requires_grad_(), numbers(1, 1 << 20)
    products.thin(a, x).sum().backward()
    close(a.grad, x.expand(2, -1))  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_layer(bias):
    rows, inp, out = LARGE
    x, w, b = numbers(2, rows // 2, inp).requires_grad_(), numbers(out, inp), numbers(out) if bias else None
    assert products.large(x, w)
    y = products.frozen(x, w, b)
    close(y, torch.nn.functional.linear(x, w, b))
    up = numbers(2, rows // 2, out)
    (got,) = torch.autograd.grad(y, x, up)
    close(got, up @ w)
    assert w.grad is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_numbers_stay_with_torch(dtype):
    rows, inp, out = LARGE
    assert not products.large(torch.zeros(rows, inp, dtype=dtype), torch.zeros(out, inp, dtype=dtype))
    assert not products.large(torch.zeros(inp, rows).mT, torch.zeros(out, inp))


def test_switched_off():
    rows, inp, out = LARGE
    torch._C._set_mkldnn_enabled(False)  # torch.backends.mkldnn.flags warns of another flag on the way
    try:
        assert not products.large(torch.zeros(rows, inp), torch.zeros(out, inp))
    finally:
        torch._C._set_mkldnn_enabled(True)


def test_on_intels_processors_torch_keeps_its_own(monkeypatch):
    x, w = numbers(LARGE[0], LARGE[1]), numbers(LARGE[2], LARGE[1])
    assert products.large(x, w)
    monkeypatch.setattr(products, "_intel", lambda: True)
    assert not products.at_hand() and not products.large(x, w)
