"""Training of one tenant takes a site's product and its update as one node: same output, same gradients."""

import pytest
import torch
from torch import nn

import commonweight as cw
from commonweight.host.hooks import SiteHook
from tests.models import answer, make

METHODS = {
    "lora": {"rank": 2},
    "lora-xs": {"rank": 2},
    "vera": {"rank": 4},
    "mos": {},
    "pissa": {"rank": 2},
    "mola": {"rank": 2},
}


def gradients(kind, method, options, recompute=False):
    model, batch = make(kind)
    host = cw.Host(model)
    tenant = host.add("t", method, **options)
    with torch.no_grad():
        for i, p in enumerate(tenant.parameters()):
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(i)) / 4)
    if recompute:
        model.activation_checkpointing_enable()
        model.train()
    with host.route("t"):
        out = answer(model, batch)
        out.float().cos().sum().backward()
    return out.detach(), {n: p.grad for n, p in tenant.named_parameters()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert", "mlp"])
@pytest.mark.parametrize("method", METHODS)
def test_the_same_as_output_and_autograd(kind, method, monkeypatch):
    out, got = gradients(kind, method, METHODS[method])
    monkeypatch.setattr(SiteHook, "owns_output", lambda self: False)
    plain, want = gradients(kind, method, METHODS[method])
    torch.testing.assert_close(out, plain)
    assert any(g is not None for g in want.values())
    for n, g in want.items():
        assert (g is None) == (got[n] is None)
        if g is not None:
            torch.testing.assert_close(got[n], g, atol=1e-4, rtol=1e-3)


def test_computed_once_more():
    out, want = gradients("llama", "lora", {"rank": 2})
    again, got = gradients("llama", "lora", {"rank": 2}, recompute=True)
    assert torch.equal(out, again)
    for n in want:
        torch.testing.assert_close(got[n], want[n])


def test_what_others_keep_of_a_module_is_not_written_over():
    layer = nn.Linear(3, 4)
    kept = []
    layer.register_forward_hook(lambda m, args, y: kept.append(y))
    host = cw.Host(nn.Sequential(layer))
    tenant = host.add("t", "lora", rank=2)
    with torch.no_grad():
        for p in tenant.parameters():
            p.fill_(0.5)
    x = torch.ones(2, 3)
    with host.route("t"):
        y = host.model(x)
    assert torch.equal(kept[0], nn.functional.linear(x, layer.weight, layer.bias)) and not torch.equal(kept[0], y)


def test_a_forward_of_its_own_keeps_its_own_gradient():
    """A layer whose forward somebody replaced does not answer x W^T: its gradient is that of what it does."""
    layer = nn.Linear(3, 3, bias=False)
    layer.forward = lambda x: nn.functional.linear(x, layer.weight).tanh()
    host = cw.Host(nn.Sequential(layer))
    host.add("t", "lora", rank=2)
    x = torch.ones(2, 3, requires_grad=True)
    with host.route("t"):
        host.model(x).sum().backward()
    want = torch.autograd.grad(nn.functional.linear(x, layer.weight).tanh().sum(), x)[0]
    torch.testing.assert_close(x.grad, want)
