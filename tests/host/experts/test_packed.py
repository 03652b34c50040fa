"""Experts that are packed are no sites, and are named with what makes them so."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import commonweight as cw
from tests.mixtures import mixture


class PackedExperts(nn.Module):
    """As transformers holds them: codes of 8 bits and scales, each of three dimensions."""

    def __init__(self, dtype: torch.dtype):
        super().__init__()
        for slot in ("gate_up_proj", "down_proj"):
            self.register_parameter(slot, nn.Parameter(torch.zeros(4, 8, 8).to(dtype), requires_grad=False))
            self.register_parameter(f"{slot}_scale_inv", nn.Parameter(torch.ones(4, 2, 2)))

    def forward(self, hidden_states, top_k_index, top_k_weights):
        return hidden_states


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.float8_e4m3fn])
def test_packed_experts_are_told_and_their_scales_are_no_sites(dtype):
    model, batch = mixture("qwen3_moe")
    for module in model.modules():
        if hasattr(module, "experts"):
            module.experts = PackedExperts(dtype)
    host = cw.Host(model)
    assert not any(s.kind == "expert" for s in host.base.every)
    found = host.coverage("lora")
    left = next(x for x in found.left if "packed experts" in x.family)
    assert left.family == "packed experts (PackedExperts)" and left.numbers % (2 * 4 * (64 + 4)) == 0
    for text in (found.line, str(found)):
        assert "PackedExperts is no site: load the model with its quantisation config's dequantize=True" in text
    assert found.read + sum(x.numbers for x in found.left) == found.total
    with pytest.raises(cw.CommonweightError, match=r"packed \(PackedExperts\), and packed experts are no sites"):
        host.add("t", "lora", sites="*.experts.*")
    host.add("t", "lora", rank=2)
    with torch.no_grad(), host.route(["t", None, "t", "t"]):
        model(**batch)
