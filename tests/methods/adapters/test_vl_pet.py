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
        elif self.gate == "row":
            g = torch.sigmoid(F.linear(torch.cat([x, z], -1), p["gate"][None], p["gate_bias"])).mean(1, keepdim=True)
        else:
            g = 1 + p["gate"]
        return (g * z, *y[1:]) if isinstance(y, tuple) else g * z


@pytest.mark.parametrize("kind, gate", [("llama", g) for g in ("large", "token", "channel")] + [("vit", "row")])
def test_formula(kind, gate):
    model, batch = make(kind)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "vl-pet", size=4, gate_size=3, gate=gate), std=0.3)
    blocks = "model.layers" if kind == "llama" else "layers"
    for i, block in enumerate(plain.get_submodule(blocks)):
        for name in ("mlp", "self_attn" if kind == "llama" else "attention"):
            at = f"{blocks}.{i}.{name}."
            pools = {k.removeprefix(at): p.detach() for k, p in tenant.pools.items() if k.startswith(at)}
            setattr(block, name, Part(getattr(block, name), gate, pools))
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), answer(plain, batch))


def test_count_is_the_papers():
    site = [cw.Site("mlp", 768, 768, "ffn")]
    adapter = 2 * 768 * 96 + 96 + 768
    for gate, more in {"large": 2 * 768 * 96 + 96 + 768, "token": 769, "channel": 768, "row": 1537}.items():
        assert cw.plan("vl-pet", site, gate=gate).count() == adapter + more


def test_a_gate_of_a_row_leaves_its_padding_out():
    """The released mean counts padding: the same row has another gate where another row of its batch is longer."""
    model, batch = make("bert")
    host = cw.Host(model)
    for i, name in enumerate("tu"):
        stir(host.add(name, "vl-pet", size=4, gate="row"), i, std=0.3)
    lengths = (6, 3, 5, 4)
    mask = (torch.arange(batch["input_ids"].shape[1]) < torch.tensor(lengths)[:, None]).long()
    with torch.no_grad():
        for readers in (["t", "u", None, "t"], ["t"] * 4):
            with host.route(readers):
                mixed = model(**{**batch, "attention_mask": mask}).last_hidden_state
            for row, (name, n) in enumerate(zip(readers, lengths)):
                with host.route(name):
                    alone = model(input_ids=batch["input_ids"][row : row + 1, :n]).last_hidden_state[0]
                torch.testing.assert_close(mixed[row, :n], alone, rtol=1e-4, atol=1e-5)
    gates = torch.sigmoid(torch.randn(1, 6, 1))
    official, ours = gates.mean(1), gates[:, :3].mean(1)
    assert (official - ours).abs().max() > 1e-3, "of a row of three tokens, padded to six"


def test_a_gate_of_a_row_is_refused_in_causal_blocks():
    with pytest.raises(cw.CommonweightError, match=r"vl-pet reads sites .* what comes after it"):
        cw.Host(make("llama")[0]).add("t", "vl-pet", gate="row")


def test_a_part_of_two_widths_is_refused():
    with pytest.raises(cw.CommonweightError, match="vl-pet: mlp is given 4 numbers a token and gives 8"):
        cw.plan("vl-pet", [cw.Site("mlp", 8, 4, "ffn")])
