"""RandLoRA against PEFT, on the same numbers: square, wide and tall layers, ranks that divide no width."""

import pytest

from tests.against.peft_pair import copy_in, layers, peft, same_answers, same_gradients, twins


@pytest.mark.parametrize("rank", [8, 5])
def test_same_logits_and_gradients(rank):
    config = peft.RandLoraConfig(r=rank, randlora_alpha=2 * rank)
    both = twins(config, "randlora", std=0.02, rank=rank, alpha=2.0 * rank)
    theirs = {
        f"{site}.{ours}": getattr(m, f"randlora_{name}")["default"]
        for site, m in layers(both[0], "randlora_lambda").items()
        for ours, name in (("lam", "lambda"), ("gamma", "gamma"))
    }
    assert theirs.keys() == dict(both[2].named_parameters()).keys()
    shared = both[0].base_model
    frozen = {
        "randlora.A": shared.randlora_A["default"].squeeze(1),
        "randlora.B": shared.randlora_B["default"].flatten(1),
    }
    copy_in(both[2], {**theirs, **frozen})
    same_answers(both)
    same_gradients(both, lambda: theirs)


def test_same_start():
    wrapped, _, tenant, _ = twins(peft.RandLoraConfig(r=8), "randlora", std=0.0, rank=8)
    for site, m in layers(wrapped, "randlora_lambda").items():
        assert tenant.pools[f"{site}.lam"].abs().max() == m.randlora_lambda["default"].abs().max() == 0
        assert (tenant.pools[f"{site}.gamma"] - m.randlora_gamma["default"]).abs().max() < 1e-8
    for slot in "AB":
        ours, theirs = tenant.pools[f"randlora.{slot}"], getattr(wrapped.base_model, f"randlora_{slot}")["default"]
        assert abs(ours.std() - theirs.float().std()) < 0.1 and abs(ours.max() - theirs.float().max()) < 0.1
