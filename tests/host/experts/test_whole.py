"""Mixtures whose forward is their own: routers that are given ids too, experts that keep (B, T, d), sorted tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf
from torch import Tensor, nn
from torch.nn import functional as F

import commonweight as cw
from tests.host.test_layouts import same
from tests.laws.subjects import stir

IDS = torch.randint(3, 60, (3, 5), generator=torch.Generator().manual_seed(1))


class HashRouter(nn.Module):
    """Which expert a token goes to says its number, given as (B, T); how much, a product of all tokens in one list."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 8))
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        scores = F.linear(x.reshape(-1, 8), self.weight).sigmoid() * self.scale
        at = (ids.reshape(-1) % 4)[:, None]
        return scores.gather(1, at), at


class SharedExperts(nn.Module):
    """Every token goes to both, with weights of a list of all tokens; what comes out is laid out as what came."""

    def __init__(self) -> None:
        super().__init__()
        self.up_proj = nn.Parameter(torch.randn(2, 6, 8))
        self.down_proj = nn.Parameter(torch.randn(2, 8, 6))

    def forward(self, x: Tensor, gammas: Tensor) -> Tensor:
        wide = x.reshape(1, -1, 8).expand(2, -1, -1)
        y = torch.bmm(wide, self.up_proj.mT).tanh() * gammas.T[..., None]
        return torch.bmm(y, self.down_proj.mT).sum(0).view(x.shape)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 8)
        self.router, self.shared_experts = HashRouter(), SharedExperts()
        self.out = nn.Linear(8, 5)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        weight, _ = self.router(x, ids)
        return self.out(x + self.shared_experts(x, gammas=weight.expand(-1, 2)))


def made() -> nn.Module:
    torch.manual_seed(0)
    return Model().eval()


@pytest.mark.parametrize("rows", [1, 3])
def test_what_has_a_row_for_each_token_goes_with_its_tokens(rows):
    host = cw.Host(made())
    assert {s.kind for s in host.sites_for(cw.methods.get("full")) if s.name == "router.scale"} == {"parameter"}
    for i, (name, sites) in enumerate({"r": "router", "e": "shared_experts*"}.items()):
        stir(host.add(name, "lora", rank=2, sites=sites), i, std=0.5)
    ids = IDS[:rows]
    same(host, lambda m: m(ids), ["r", None, "e"][:rows], made)
    assert not host.model.forward.apart
    numbers = torch.tensor([[host["r"].number, -1, host["e"].number, -1, host["r"].number]] * rows)
    with torch.no_grad():
        with host.route(numbers):
            got = host.model(ids)
        for t in range(5):
            with host.route(["r", None, "e", None, "r"][t]):
                torch.testing.assert_close(got[:, t], host.model(ids)[:, t])


def jetmoe(k: int = 2) -> Any:
    torch.manual_seed(0)
    config = tf.JetMoeConfig(
        vocab_size=60, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_key_value_heads=2, kv_channels=8,
        num_local_experts=4, num_experts_per_tok=k, pad_token_id=0,
    )  # fmt: skip
    model = tf.JetMoeForCausalLM(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn(p.shape))
    return model


@pytest.mark.parametrize("k", [1, 2])
def test_layers_of_one_projection_hold_experts_too(k):
    """JetMoe gives them the tokens sorted by expert: with one expert a token there are as many as in the batch."""
    host = cw.Host(jetmoe(k))
    sites = {s.name: s.kind for s in host.sites}
    assert sites["model.layers.0.mlp.input_linear[3]"] == sites["model.layers.1.mlp.output_linear[0]"] == "expert"
    for i, name in enumerate("tu"):
        stir(host.add(name, "lora", rank=2, sites="*put_linear*"), i, std=0.3)
    same(host, lambda m: m(IDS).logits, ["t", None, "u"], lambda: jetmoe(k), rtol=1e-3, atol=1e-4)
    stir(host.add("f", "full", sites="*"), 2, std=0.02)
    assert host.coverage("f").read == host.coverage("f").total
    with host.route("t"):
        host.model(IDS).logits.square().mean().backward()
    assert any(p.grad is not None for p in host["t"].parameters())


@pytest.mark.parametrize("name, kind", [("mlp.gate.wg", "router"), ("experts.router.layer", "router"),
                                        ("experts.2.gate", "expert"), ("gate_proj", "linear")])  # fmt: skip
def test_a_router_is_told_by_its_name(name, kind):
    model = nn.Module()
    at: nn.Module = model
    for part in ["layers", *name.split(".")[:-1]]:
        at.add_module(part, nn.Module())
        at = at.get_submodule(part)
    at.add_module(name.split(".")[-1], nn.Linear(8, 4))
    assert [s.kind for s in cw.Host(model).sites if s.kind in ("linear", "router", "expert")] == [kind]
