"""Changes by places of a transform: the form for few tokens, the one for many, and the weight."""

import pytest
import torch

from commonweight.methods.spectral.fourierft import Spectrum, dense
from commonweight.methods.spectral.waveft import Haar


@pytest.mark.parametrize("shape", [(7, 5), (8, 6), (6, 9), (1, 4), (5, 1), (2, 2)])
@pytest.mark.parametrize("bind", [Spectrum(150.0), Haar(25.0)], ids=lambda b: type(b).__name__)
def test_few_tokens_and_many_give_the_same(bind, shape):
    out, inp = shape
    g = torch.Generator().manual_seed(out)
    n = max(1, out * inp // 2)
    places = torch.randperm(out * inp, generator=g)[:n].int()
    c = torch.randn(n, generator=g, dtype=torch.double, requires_grad=True)
    x, w = torch.randn(40, inp, generator=g).double(), torch.zeros(out, inp)
    y = torch.zeros(40, out).double()
    many = bind.output(x, y, None, c, places)
    assert dense(x, y, c) and not dense(x[:1], y[:1], c)
    few = torch.cat([bind.output(x[i : i + 1], y[i : i + 1], None, c, places) for i in range(40)])
    torch.testing.assert_close(many, few)
    torch.testing.assert_close(many, x @ bind.weight(w.double(), c, places).T)
    up = torch.randn(40, out, generator=g).double()
    grads = [torch.autograd.grad(v, c, up)[0] for v in (many, few)]
    torch.testing.assert_close(*grads)
