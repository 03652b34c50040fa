"""X-LoRA against its formula, and its network against PEFT's."""

import pytest
import torch

from commonweight.bind.over import Network

from .below import SITE, stand


def numbers(t, front):
    return {k.rpartition(".")[2]: v.detach() for k, v in t.pools.items() if k.rpartition(".")[0] == front}


@pytest.mark.parametrize("layerwise", [False, True])
def test_formula(layerwise):
    seen = {}
    _, t, x, _, added, pairs = stand("xlora", depth=2, hidden=5, temperature=0.5, layerwise=layerwise, seen=seen)
    p = numbers(t, "state32")
    p |= numbers(t, SITE) if layerwise else {}
    z = torch.clamp(seen["z"] @ p["W0"].T + p["b0"], min=0) @ p["W1"].T + p["b1"]
    g = torch.exp(2 * z) / torch.exp(2 * z).sum(-1, keepdim=True)
    want = sum(g[..., i, None] * (x @ A.T @ B.T) for i, (A, B) in enumerate(pairs))
    torch.testing.assert_close(added, want, rtol=1e-4, atol=1e-5)
    assert g.std() > 1e-3
    assert t.count() == 5 * 33 + 3 * 6 * (4 if layerwise else 1)  # two layers, up and down


def test_a_token_takes_the_largest():
    _, t, x, _, added, pairs = stand("xlora", active=1, softmax=False, seen=(seen := {}))
    p = numbers(t, "state32")
    g = seen["z"] @ p["W0"].T + p["b0"]
    each = torch.stack([x @ A.T @ B.T for A, B in pairs], -2)
    at = g.argmax(-1)
    want = g.gather(-1, at[..., None]) * each.gather(-2, at[..., None, None].expand(*at.shape, 1, 32))[..., 0, :]
    torch.testing.assert_close(added, want, rtol=1e-4, atol=1e-5)


def test_the_network_is_that_of_peft():
    peft = pytest.importorskip("peft.tuners.xlora")
    from peft.tuners.xlora.classifier import XLoraClassifier

    config = peft.XLoraConfig(
        hidden_size=8, xlora_depth=3, xlora_size=6, xlora_dropout_p=0.0, softmax_temperature=0.7, adapters={}
    )
    theirs = XLoraClassifier(torch.nn.Linear(1, 1), config, n_classes=4, n_layers=1, device=torch.device("cpu"))
    theirs.eval()
    maps = [m for m in theirs.layers if isinstance(m, torch.nn.Linear)]
    slots = {f"W{j}": m.weight for j, m in enumerate(maps)} | {f"b{j}": m.bias for j, m in enumerate(maps)}
    x = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    result = type("Result", (), {"hidden_states": (x,)})
    want = theirs(result, input_ids=torch.zeros(2, 3, dtype=torch.long))[:, :, 0]
    torch.testing.assert_close(Network(3, temperature=0.7).gates(x, slots), want)
