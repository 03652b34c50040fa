"""P-tuning: the network's formula, and what is left when it goes."""

import torch
from torch import nn

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"tokens": 5, "hidden": 6}
VARIANTS = [{"hidden": 0}, {"network": False}]


def test_it_is_a_prompt_that_the_network_made():
    model, batch = make("llama")
    host = cw.Host(model)
    p = stir(host.add("t", "p-tuning", tokens=3, hidden=6)).pools
    at = "model.embed_tokens.prompt."
    net = nn.Sequential(nn.Linear(32, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 32))
    with torch.no_grad():
        for i, layer in enumerate((net[0], net[2], net[4]), 1):
            layer.weight.copy_(p[f"{at}W{i}"])
            layer.bias.copy_(p[f"{at}b{i}"])
        host.add("plain", "prompt-tuning", tokens=3)
        host["plain"].pools[f"{at}E"].copy_(net(p[f"{at}E"]))
        with host.route("plain"):
            want = answer(model, batch)
        with host.route("t"):
            torch.testing.assert_close(answer(model, batch), want)
        small = host.compact("t")
        assert small.count() == 3 * 32 and not small.config.network
        with host.route("t"):
            torch.testing.assert_close(answer(model, batch), want)
