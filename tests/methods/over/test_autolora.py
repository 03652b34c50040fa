"""AutoLoRA's fusion against its formula."""

import torch

from .below import SITE, stand


def normal(t, gain, shift):
    return (t - t.mean(-1, keepdim=True)) / (t.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt() * gain + shift


def test_formula():
    _, t, x, y, added, pairs = stand("autolora")
    p = {k.rpartition(".")[2]: v.detach() for k, v in t.pools.items() if k.startswith(SITE)}
    want = torch.zeros_like(y)
    for A, B in pairs:
        u = x @ A.T @ B.T
        mine, seen = normal(u, p["gain_u"], p["shift_u"]), normal(y, p["gain_y"], p["shift_y"])
        want += p["w"] * torch.sigmoid(mine * p["a"] + seen * mine * p["c"] + p["b"]) * u
    torch.testing.assert_close(added, want, rtol=1e-4, atol=1e-5)
    assert t.count() == 8 * 2 * (64 + 32)  # two layers, up and down
