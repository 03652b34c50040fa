"""PSRP against its formula, written out on the model's own modules."""

import copy

import pytest
import torch
from torch import nn

import commonweight as cw
from tests.laws.subjects import stir
from tests.methods.adapters.test_parallel import PARTS
from tests.models import answer, make

SMALL = {"size": 5}


class Changed(nn.Module):
    """A module whose output is scaled and shifted by what it was given."""

    def __init__(self, module, D, W, B):
        super().__init__()
        self.module, self.pools = module, [p.detach() for p in (D, W, B)]

    def forward(self, x):
        y, (D, W, B) = self.module(x), self.pools
        w, b = (torch.relu(x @ D.T) @ u.T for u in (W, B))
        return b + (1 + w) * y


@pytest.mark.parametrize("kind", PARTS)
def test_formula(kind):
    model, batch = make(kind)
    host = cw.Host(model)
    tenant = stir(host.add("t", "psrp", size=5))
    theirs = copy.deepcopy(model)
    blocks, ffn, _ = PARTS[kind]
    for i, block in enumerate(theirs.get_submodule(blocks)):
        D, W, B = (tenant.pools[f"{blocks}.{i}.{ffn}.{k}"] for k in "DWB")
        setattr(block, ffn, Changed(getattr(block, ffn), D, W, B))
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), answer(theirs, batch), rtol=1e-4, atol=1e-5)


def test_count():
    """MP+ adds 48 d a block."""
    sites = [cw.Site(f"layers.{i}.mlp", 768, 768, "ffn", "", False) for i in range(12)]
    assert cw.plan("psrp", sites).count() == 12 * 48 * 768
