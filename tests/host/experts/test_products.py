"""Products by group: every way gives what one product a group gives, and its gradients."""

from __future__ import annotations

import pytest
import torch

from commonweight.host.experts.products import between, by_size, pieces, product


def reference(x, w, ends):
    return torch.cat([x[a:b] @ w[i].T for i, a, b in pieces(ends)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("out", "inp"), [(8, 16), (3, 16), (8, 7), (1, 1)])
@pytest.mark.parametrize("turned", [False, True])
def test_a_product_and_its_gradients(out, inp, turned, dtype):
    torch.manual_seed(0)
    ends = torch.tensor([2, 2, 7, 9], dtype=torch.int32)
    x = torch.randn(9, inp, dtype=dtype, requires_grad=True)
    w = torch.randn(4, inp, out, dtype=dtype).mT if turned else torch.randn(4, out, inp, dtype=dtype)
    w.requires_grad_()
    got, want = product(x, w, ends), reference(x, w, ends)
    torch.testing.assert_close(got, want)
    for loss in (lambda y: y.sum(), lambda y: y.square().sum()):
        found = [torch.autograd.grad(loss(y), (x, w), retain_graph=True) for y in (got, want)]
        torch.testing.assert_close(found[0], found[1])
    g = torch.randn(9, out, dtype=dtype)
    torch.testing.assert_close(between(g, x.detach(), ends), torch.autograd.grad(want, w, g)[0])


def test_groups_of_few_rows_are_one_product_a_size():
    torch.manual_seed(0)
    sizes = torch.tensor([1, 1, 2, 2, 2, 5, 9, 40])
    ends = sizes.cumsum(0).to(torch.int32)
    x, w = torch.randn(62, 16), torch.randn(8, 12, 16)
    with torch.no_grad():
        torch.testing.assert_close(by_size(x, w, ends), reference(x, w, ends))
        torch.testing.assert_close(by_size(x[:2], w[:2], ends[:2]), reference(x[:2], w[:2], ends[:2]))
