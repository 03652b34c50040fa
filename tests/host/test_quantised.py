"""Real libraries' quantised bases: every method is what it is on the base in floating point with the same numbers."""

from __future__ import annotations

import pytest
import torch

import commonweight as cw
from commonweight.host import weights
from commonweight.host.fingerprint import of_base
from tests.host.quantised import IDS, KINDS, SITE, here, in_float, llama, quantised
from tests.laws.subjects import METHODS, can, small, soft, stir

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries
ROUNDS = {"bitsandbytes-int8", "torchao-int8-dynamic", "torchao-int4-dynamic", "compressed-w8a8"}  # their input
ALL = [here(k) for k in KINDS]
_MODELS: dict[str, tuple] = {}


def hosts(kind: str) -> tuple[cw.Host, cw.Host]:
    """A quantised base and the same numbers in floating point; made once a process."""
    if kind not in _MODELS:
        host = cw.Host(quantised(kind))
        _MODELS[kind] = host, cw.Host(in_float(host.model))
    return _MODELS[kind]


def step(host: cw.Host, name: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(what a tenant answers, its gradient), the same draws of dropout everywhere; an evaluation comes first."""
    host.model.eval()
    with torch.no_grad(), host.route(name):
        y = host.model(IDS).logits
    host.model.train()
    torch.manual_seed(3)
    with host.route(name):
        host.model(IDS, labels=IDS).loss.backward()
    host.model.eval()
    found = [p.grad for p in host[name].parameters() if p.grad is not None]
    return y, torch.cat([g.flatten() for g in found]) if found else torch.zeros(1)


def off(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm().clamp_min(1e-9)).item()


@pytest.mark.parametrize("kind", ALL)
def test_no_site_vanishes_and_the_weight_is_near_the_one_that_was_packed(kind):
    host, plain = hosts(kind)
    assert [s.name for s in host.sites] == [s.name for s in plain.sites]
    w = host.weight(SITE)
    assert w.dtype is torch.float32 and off(w, llama().get_submodule(SITE).weight) < 0.15


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("method", [m for m in METHODS if m != "probe"])
def test_a_method_is_the_same_as_on_the_dequantised_base(kind, method):
    host, plain = hosts(kind)
    if not can(method, host):
        pytest.skip("a Llama has no site for it")
    rough = kind in ROUNDS
    try:
        for h in (host, plain):
            stir(h.add("t", method, **(soft if rough else small)(method)))
        (y, g), (want, gradient) = step(host, "t"), step(plain, "t")
        assert off(y, want) < (0.02 if rough else 1e-4)
        assert off(g, gradient) < (0.1 if rough else 1e-3)
    finally:
        for h in (host, plain):
            if "t" in h:
                h.remove("t")


@pytest.mark.parametrize("kind", ALL)
def test_the_first_forward_does_not_make_another_base_of_it(kind):
    fresh, ran = quantised(kind), quantised(kind)
    before = of_base(ran)
    with torch.no_grad():
        ran(IDS)
    assert of_base(ran) == before != of_base(quantised(kind, 1))
    assert cw.Host(fresh).fingerprint == cw.Host(ran).fingerprint


@pytest.mark.parametrize("kind", ALL)
def test_a_tenant_is_saved_loaded_and_served_in_a_mixed_batch(kind, tmp_path):
    host, plain = hosts(kind)
    for h in (host, plain):
        for i, name in enumerate("ab"):
            stir(h.add(name, "lora", rank=2, seed=i), i)
    try:
        host.load("again", host.save("a", tmp_path / "a.safetensors"))
        with torch.no_grad():
            with host.route(["again", "b"]):
                y = host.model(IDS).logits
            with plain.route(["a", "b"]):
                want = plain.model(IDS).logits
        assert off(y, want) < (0.02 if kind in ROUNDS else 1e-4)
    finally:
        for h in (host, plain):
            for name in [*h]:
                h.remove(name)


def test_a_square_weight_is_read_the_right_way_round():
    """Layers of GPTQ answer (d_in, d_out), others (d_out, d_in): a square shape does not tell."""

    class Turned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.in_features = self.out_features = 8
            self.codes = torch.nn.Parameter(torch.randint(-9, 9, (8, 8)).to(torch.int8), False)

        def dequantize_weight(self):
            return self.codes.float()

        def forward(self, x):
            return x @ self.codes.to(x.dtype)

    layer = Turned()
    assert torch.equal(weights.dense(layer), layer.codes.T.float())
    layer.dequantize_weight = lambda: layer.codes.T.float()
    assert torch.equal(weights.dense(layer), layer.codes.T.float())
