"""GradNormLoRP against the released optimizer's steps, written out on a weight of its own."""

import math

import pytest
import torch

import commonweight as cw
from commonweight.adapt import optimizers
from commonweight.adapt.gradnormlorp import RANK, SCALE, GradNormLoRP, weights
from commonweight.adapt.recipe import Recipe
from tests.models import make


def released(w, grads, lr, decay):
    """A weight whose rows are v / |v| times g, both moved by Adam; g is set to |v| when a step begins."""
    v, m, s, mg, sg, P = w.clone(), 0.0, 0.0, 0.0, 0.0, None
    for t, grad in enumerate(grads, 1):
        g = v.norm(dim=1, keepdim=True)
        grad_v, grad_g = grad * g / v.norm(dim=1, keepdim=True), (grad * v / g).sum(1, keepdim=True)
        tall = grad.shape[0] >= grad.shape[1]
        if P is None:
            u, _, vh = torch.linalg.svd(grad_v, full_matrices=False)
            P = vh[:RANK] if tall else u[:, :RANK]
        low = grad_v @ P.T if tall else P.T @ grad_v
        m, s = 0.9 * m + 0.1 * low, 0.999 * s + 0.001 * low**2
        mg, sg = 0.9 * mg + 0.1 * grad_g, 0.999 * sg + 0.001 * grad_g**2
        size = lr * math.sqrt(1 - 0.999**t) / (1 - 0.9**t)
        step = m / (s.sqrt() + 1e-6)
        v = v - size * SCALE * (step @ P if tall else P @ step)
        g = g - size * mg / (sg.sqrt() + 1e-6)
        v, g = v - lr * decay * v, g - lr * decay * g
        w = g * v / v.norm(dim=1, keepdim=True)
    return w


@pytest.mark.parametrize("shape", [(12, 7), (7, 12)])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps(shape, decay):
    g = torch.Generator().manual_seed(0)
    w0, grads = torch.randn(shape, generator=g), [torch.randn(shape, generator=g) for _ in range(4)]
    dw = torch.nn.Parameter(torch.zeros(shape))
    optimizer = GradNormLoRP([{"params": [dw], "lr": 0.01}], {dw: lambda: w0}, decay)
    for grad in grads:
        dw.grad = grad.clone()
        optimizer.step()
    torch.testing.assert_close(w0 + dw.detach(), released(w0, grads, 0.01, decay), rtol=1e-4, atol=1e-5)
    assert optimizer.state[dw]["exp_avg_v"].shape == ((12, RANK) if shape == (12, 7) else (RANK, 12))


def test_whole_weights_alone_and_the_rest_by_adamw():
    host = cw.Host(make("bert")[0])
    tenant = host.add("t", "full")
    optimizer = optimizers.make(Recipe(optimizer="gradnormlorp"), [tenant])
    assert [type(p) for p in optimizer.parts] == [GradNormLoRP, torch.optim.AdamW]
    assert len(weights([tenant])) == sum(n.endswith(".dw") and p.dim() == 2 for n, p in tenant.pools.items())
    with pytest.raises(cw.CommonweightError, match="gradnormlorp: lora trains no whole weights"):
        optimizers.make(Recipe(optimizer="gradnormlorp"), [host.add("l", "lora", rank=2)])
