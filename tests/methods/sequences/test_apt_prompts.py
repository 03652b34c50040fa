"""Approximated prompts against the released function, written out on the model's own modules."""

import copy

import pytest
import torch
from torch import nn

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make
from tests.rows import generate_alone

SMALL = {"tokens": 5, "rank": 3}


class Approximating(nn.Module):
    """`approximate_prompt` of the release behind an attention, token by token."""

    def __init__(self, module, P, W1, W2, s):
        super().__init__()
        self.module, self.pools = module, (P, W1, W2, s)

    def forward(self, x=None, *args, **kwargs):
        x = kwargs["hidden_states"] if x is None else x
        y = self.module(x, *args, **kwargs) if "hidden_states" not in kwargs else self.module(*args, **kwargs)
        P, W1, W2, s = self.pools
        more = torch.zeros_like(x)
        for b in range(x.shape[0]):
            for t in range(x.shape[1]):
                a = [max(float(x[b, t] @ (p + W2 @ (W1 @ p))), 0.0) for p in P]
                more[b, t] = max(a) * sum(a_j * p for a_j, p in zip(a, P))
        return (torch.exp(s) * (y[0] + more), *y[1:]) if isinstance(y, tuple) else torch.exp(s) * (y + more)


@pytest.mark.parametrize(
    ("kind", "layers", "part"), [("llama", "model.layers", "self_attn"), ("vit", "layers", "attention")]
)
def test_formula(kind, layers, part):
    model, batch = make(kind)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "apt-prompts", **SMALL), std=0.3)
    for i, block in enumerate(plain.get_submodule(layers)):
        pools = [tenant.pools[f"{layers}.{i}.{part}.{k}"].detach() for k in ("P", "W1", "W2", "s")]
        setattr(block, part, Approximating(getattr(block, part), *pools))
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), answer(plain, batch), rtol=1e-4, atol=1e-5)


def test_in_bert_it_comes_before_the_sum():
    """METER's place: behind the output projection, before the norm of the sum."""
    model, batch = make("bert")
    host = cw.Host(model)
    tenant = stir(host.add("t", "apt-prompts", **SMALL), std=0.3)
    block, name = model.encoder.layer[0], "encoder.layer.0.attention"
    P, W1, W2, s = (tenant.pools[f"{name}.{k}"] for k in ("P", "W1", "W2", "s"))
    got = {}
    handles = [
        block.register_forward_pre_hook(lambda m, args: got.update(x=args[0])),
        block.attention.register_forward_hook(lambda m, args, y: got.update(y=y[0])),
    ]
    with torch.no_grad(), host.route("t"):
        answer(model, batch)
    with torch.no_grad(), host.route(None):
        o = block.attention.output.dense(block.attention.self(got["x"])[0])
        a = torch.relu(got["x"] @ (P + P @ W1.T @ W2.T).T)
        o = s.exp() * (o + a.max(-1, keepdim=True).values * (a @ P))
        torch.testing.assert_close(got["y"], block.attention.output.LayerNorm(o + got["x"]), rtol=1e-5, atol=1e-5)
    for h in handles:
        h.remove()


def test_the_largest_number_is_given_no_gradient():
    bind = cw.methods.sequences.apt_prompts.Approximated()
    x, y, P, W1 = (torch.randn(s, dtype=torch.double) for s in ((6, 8), (6, 8), (5, 8), (3, 8)))
    W2, s = torch.randn(8, 3, dtype=torch.double), torch.zeros(1, dtype=torch.double)
    at = P.clone().requires_grad_()
    bind.output(x, y, None, P=at, W1=W1, W2=W2, s=s).sum().backward()  # type: ignore[arg-type]
    again = P.clone().requires_grad_()
    a = torch.relu(x @ (again + again @ W1.T @ W2.T).T)
    with torch.no_grad():
        most = torch.relu(x @ (P + P @ W1.T @ W2.T).T).max(-1, keepdim=True).values
    (most * (a @ again)).sum().backward()
    torch.testing.assert_close(at.grad, again.grad)


def test_generation_in_a_mixed_batch_padded_on_the_left():
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("a", "apt-prompts", **SMALL), 1)
    stir(host.add("b", "apt-prompts", **SMALL), 2)
    stir(host.add("p", "prefix-tuning", tokens=5), 3)
    generate_alone(host, batch["input_ids"], ["a", None, "p", "b"])


def test_a_fresh_tenant_changes_little():
    model, batch = make("bert")
    host = cw.Host(model)
    host.add("t", "apt-prompts", **SMALL)
    with torch.no_grad():
        base = answer(model, batch)
        with host.route("t"):
            moved = (answer(model, batch) - base).abs().max()
    assert 0 < moved < 0.1


def test_count_is_the_releases():
    """METER's of one attention with 200 prompts, ViLT's with 50."""
    sites = [cw.Site("attn", 768, 768, "attention")]
    assert cw.plan("apt-prompts", sites, tokens=200).count() == 159_745
    assert cw.plan("apt-prompts", sites).count() == 44_545


def test_an_attention_of_two_widths():
    with pytest.raises(cw.CommonweightError, match=r"a: it is given 8 numbers a token and gives 6"):
        cw.plan("apt-prompts", [cw.Site("a", 6, 8, "attention")])
