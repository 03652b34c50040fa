"""VL-PET against its formula on the model's own modules."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"size": 4, "gate_size": 3}
VARIANTS = [{"gate": "token"}, {"gate": "channel"}]


class Part(nn.Module):
    def __init__(self, module, gate, pools):
        super().__init__()
        self.module, self.gate, self.p = module, gate, pools

    def forward(self, hidden_states, *args, **kwargs):
        y, p, x = self.module(hidden_states, *args, **kwargs), self.p, hidden_states
        first = y[0] if isinstance(y, tuple) else y
        act = nn.GELU(approximate="tanh")
        z = first + F.linear(act(F.linear(first, p["down"], p["down_bias"])), p["up"], p["up_bias"])
        if self.gate == "large":
            h = act(F.linear(x, p["gate_down"], p["gate_down_bias"]))
            g = torch.sigmoid(F.linear(h, p["gate_up"], p["gate_up_bias"]))
        elif self.gate == "token":
            g = torch.sigmoid(F.linear(x + z, p["gate"][None], p["gate_bias"]))
        else:
            g = 1 + p["gate"]
        return (g * z, *y[1:]) if isinstance(y, tuple) else g * z


@pytest.mark.parametrize("gate", ["large", "token", "channel"])
def test_formula(gate):
    model, batch = make("llama")
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "vl-pet", size=4, gate_size=3, gate=gate), std=0.3)
    for i, block in enumerate(plain.model.layers):
        for name in ("mlp", "self_attn"):
            at = f"model.layers.{i}.{name}."
            pools = {k.removeprefix(at): p.detach() for k, p in tenant.pools.items() if k.startswith(at)}
            setattr(block, name, Part(getattr(block, name), gate, pools))
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), answer(plain, batch))


def test_count_is_the_papers():
    site = [cw.Site("mlp", 768, 768, "ffn")]
    adapter = 2 * 768 * 96 + 96 + 768
    for gate, more in {"large": 2 * 768 * 96 + 96 + 768, "token": 769, "channel": 768}.items():
        assert cw.plan("vl-pet", site, gate=gate).count() == adapter + more


def test_a_part_of_two_widths_is_refused():
    with pytest.raises(cw.CommonweightError, match="vl-pet: mlp is given 4 numbers a token and gives 8"):
        cw.plan("vl-pet", [cw.Site("mlp", 8, 4, "ffn")])
