"""Polytropon and MHR against PEFT, in evaluation: in training PEFT draws the routing weights at random."""

import pytest
import torch

from tests.against.peft_pair import copy_in, layers, peft, twins
from tests.models import answer


@pytest.mark.parametrize("heads", [1, 4])
def test_same_answers_and_gradients(heads):
    config = peft.PolyConfig(r=3, n_tasks=2, n_skills=5, n_splits=heads)
    wrapped, host, tenant, batch = twins(config, "poly", std=0.3, rank=3, skills=5, heads=heads, alpha=1.0)
    theirs = layers(wrapped, "poly_lora_A")
    pairs = {}
    for site, m in theirs.items():
        for k in "AB":
            pool = getattr(m, f"poly_lora_{k}")["default"]
            pairs[f"{site}.{k}"] = (pool, lambda t, k=k: t.mT if k == "A" else t)
        pairs[f"{site}.logits"] = (
            m.poly_router["default"].module_logits,
            lambda t: t[1].view(heads, 5),
        )
    assert pairs.keys() == dict(tenant.named_parameters()).keys()
    copy_in(tenant, {n: form(p) for n, (p, form) in pairs.items()})
    task = {"task_ids": torch.ones(len(batch["input_ids"]), dtype=torch.long)}
    want = answer(wrapped.base_model, {**batch, **task})  # PeftModel itself does not pass task_ids on
    with host.route("t"):
        ours = answer(host.model, batch)
    with torch.no_grad():
        assert (want - answer(host.model, batch)).abs().max() > 1e-2, "the adapter moves nothing"
    torch.testing.assert_close(ours, want, rtol=1e-5, atol=1e-5)
    want.square().mean().backward()
    ours.square().mean().backward()
    for name, (p, form) in pairs.items():
        assert p.grad.abs().max() > 0, name
        torch.testing.assert_close(tenant.pools[name].grad, form(p.grad), rtol=1e-3, atol=1e-6)
