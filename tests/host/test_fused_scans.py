"""Kernels of state-space models that are given weights in place of calling the layers that have them (mamba-ssm).

They run on a GPU alone and are not installed here: stand-ins of the same interface compute the same in a function with
a backward pass of its own, in which torch's own functions cannot be followed.
"""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor
from torch.nn import functional as F

import commonweight as cw
from tests.laws.subjects import stir

SIZES: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2}
IDS = torch.randint(3, 60, (4, 8), generator=torch.Generator().manual_seed(1))


def convolved(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x (B, d, T)"""
    weight = weight.reshape(len(weight), 1, -1)
    return F.silu(F.conv1d(x, weight, bias, padding=weight.shape[-1] - 1, groups=len(weight))[..., : x.shape[-1]])


def scanned(x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> Tensor:
    """x, dt (B, T, d), A (d, n), B, C (B, T, n)."""
    state, out = x.new_zeros(x.shape[0], x.shape[2], A.shape[1]), []
    for t in range(x.shape[1]):
        state = state * torch.exp(dt[:, t, :, None] * A) + dt[:, t, :, None] * B[:, t, None] * x[:, t, :, None]
        out.append((state * C[:, t, None]).sum(-1) + x[:, t] * D)
    return torch.stack(out, 1)


def inner(xz, conv_w, conv_b, x_w, dt_w, out_w, out_b, A, D, dt_b) -> Tensor:
    """mamba_inner_fn of Mamba."""
    x, z = xz.chunk(2, 1)
    x = convolved(x, conv_w, conv_b).transpose(1, 2)
    dt, B, C = F.linear(x, x_w).split([dt_w.shape[1], A.shape[1], A.shape[1]], -1)
    y = scanned(x, F.softplus(F.linear(dt, dt_w) + dt_b), A, B, C, D)
    return F.linear(y * F.silu(z.transpose(1, 2)), out_w, out_b)


def combined(zxbcdt, conv_w, conv_b, dt_b, A, D, norm_w, out_w, out_b, head: int, eps: float) -> Tensor:
    """mamba_split_conv1d_scan_combined of Mamba 2, with one group."""
    d = len(D) * head
    z, xBC, dt = zxbcdt.split([d, len(conv_w), len(D)], -1)
    x, B, C = (
        convolved(xBC.transpose(1, 2), conv_w, conv_b).transpose(1, 2).split([d, *[(len(conv_w) - d) // 2] * 2], -1)
    )
    wide = lambda t: t.repeat_interleave(head, -1)  # noqa: E731
    y = scanned(x, wide(F.softplus(dt + dt_b)), wide(A)[:, None].expand(-1, B.shape[-1]), B, C, wide(D))
    y = y * F.silu(z)
    return F.linear(norm_w * y * torch.rsqrt(y.square().mean(-1, keepdim=True) + eps), out_w, out_b)


class Kernel(torch.autograd.Function):
    """Like a kernel in C++: it is given numbers, and torch sees one step."""

    @staticmethod
    def forward(ctx: Any, run: Any, rest: tuple, *given: Tensor | None) -> Tensor:
        ctx.run, ctx.rest = run, rest
        ctx.save_for_backward(*given)
        with torch._C.DisableTorchFunctionSubclass():
            return run(*(None if t is None else t.detach() for t in given), *rest)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Any, ...]:
        given = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        with torch.enable_grad():
            y = ctx.run(*given, *ctx.rest)
        some = torch.autograd.grad(y, [t for t in given if t is not None], g, allow_unused=True)
        found = iter(some)
        return None, None, *(None if t is None else next(found) for t in given)


calls: list[str] = []


def mamba_inner_fn(
    xz, conv_w, conv_b, x_w, dt_w, out_w, out_b, A, B=None, C=None, D=None, delta_bias=None, **_
) -> Tensor:
    calls.append("mamba")
    return Kernel.apply(inner, (), xz, conv_w, conv_b, x_w, dt_w, out_w, out_b, A, D, delta_bias)  # type: ignore


def mamba2_split_conv1d_scan_combined(
    zxbcdt, conv_w, conv_b, dt_b, A, D, chunk_size, rmsnorm_weight, rmsnorm_eps, outproj_weight, outproj_bias, headdim,
    **_
) -> Tensor:  # fmt: skip
    calls.append("mamba2")
    given = zxbcdt, conv_w, conv_b, dt_b, A, D, rmsnorm_weight, outproj_weight, outproj_bias
    return Kernel.apply(combined, (headdim, rmsnorm_eps), *given)  # type: ignore[return-value]


def made(kind: str) -> Any:
    torch.manual_seed(0)
    if kind == "mamba":
        model: Any = tf.MambaForCausalLM(tf.MambaConfig(**SIZES, state_size=4, time_step_rank=4))
    else:
        more = {"state_size": 4, "num_heads": 8, "head_dim": 8, "n_groups": 1, "chunk_size": 4}
        model = tf.Mamba2ForCausalLM(tf.Mamba2Config(**SIZES, **more))
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.05 * torch.randn(p.shape))
    return model.train()


KERNELS = {"mamba": mamba_inner_fn, "mamba2": mamba2_split_conv1d_scan_combined}
READERS = {"t": ("lora", {"rank": 2}), "u": ("full", {"sites": "*"}), "o": ("lora", {"rank": 2, "sites": "*.out_proj"}),
           "c": ("lora", {"rank": 2, "sites": "*.conv1d"})}  # fmt: skip


def answers(kind: str) -> dict[str, Any]:
    """Of each tenant and of a mixed batch, with gradients."""
    host = cw.Host(made(kind))
    for i, (name, (method, options)) in enumerate(READERS.items()):
        stir(host.add(name, method, **options), i, std=0.05)
    found: dict[str, Any] = {}
    for who in ("t", "u", "o", "c", None, ["t", None, "u", "o"], ["c", "o", "t", "c"]):
        for name in READERS:
            for p in host[name].parameters():
                p.grad = None
        with host.route(who):
            y = host.base.model(IDS, use_cache=False).logits
        if who is not None:
            y.square().mean().backward()
        grads = {
            f"{n}.{k}": p.grad.clone() for n in READERS for k, p in host[n].named_parameters() if p.grad is not None
        }
        found[str(who)] = y.detach(), grads
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", KERNELS)
def test_what_a_kernel_is_given_is_the_tenants(kind, monkeypatch):
    want = answers(kind)
    home = sys.modules[f"transformers.models.{kind}.modeling_{kind}"]
    calls.clear()
    monkeypatch.setattr(home, KERNELS[kind].__name__, KERNELS[kind])
    found = answers(kind)
    assert set(calls) == {kind}
    for who, (y, grads) in want.items():
        torch.testing.assert_close(found[who][0], y, rtol=1e-3, atol=1e-5, msg=lambda m, who=who: f"{who}: {m}")
        assert set(found[who][1]) == set(grads)
        torch.testing.assert_close(found[who][1], grads, rtol=1e-2, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_an_offset_of_states_has_the_layers_called(monkeypatch):
    def run() -> tuple[Tensor, Tensor | None]:
        host = cw.Host(made("mamba"))
        tenant = stir(host.add("s", "state-offset"), std=0.5)
        with host.route(["s", None, "s", None]):
            y = host.base.model(IDS, use_cache=False).logits
        y.square().mean().backward()
        return y.detach(), next(tenant.parameters()).grad

    want = run()
    calls.clear()
    monkeypatch.setattr(sys.modules["transformers.models.mamba.modeling_mamba"], "mamba_inner_fn", mamba_inner_fn)
    torch.testing.assert_close(run(), want)
    assert not calls
