"""LoRA and rsLoRA against PEFT, on the same numbers."""

from importlib import import_module

import pytest

from tests.against.peft_pair import copy_in, layers, peft, same_answers, same_gradients, twins


@pytest.mark.parametrize("rslora", [False, True])
def test_same_logits_and_gradients(rslora):
    config = peft.LoraConfig(r=4, lora_alpha=6, use_rslora=rslora)
    both = twins(config, "lora", rank=4, alpha=6.0, rslora=rslora)
    theirs = {
        f"{site}.{k}": getattr(m, f"lora_{k}")["default"].weight
        for site, m in layers(both[0], "lora_A").items()
        for k in "AB"
    }
    assert theirs.keys() == dict(both[2].named_parameters()).keys()
    copy_in(both[2], theirs)
    same_answers(both)
    same_gradients(both, lambda: theirs)


def test_ranks_and_alphas_of_some_sites():
    config = peft.LoraConfig(r=4, lora_alpha=6, rank_pattern={"q_proj": 2}, alpha_pattern={"up_proj": 12})
    both = twins(config, "lora", rank=4, alpha=6.0, ranks=(("*.q_proj", 2),), alphas=(("*.up_proj", 12.0),))
    for site, m in layers(both[0], "lora_A").items():
        copy_in(both[2], {f"{site}.{k}": getattr(m, f"lora_{k}")["default"].weight for k in "AB"})
    same_answers(both)


def test_lora_fa():
    """By PEFT an optimizer that freezes A; here `lori` without a mask, A drawn as LoRA's and B zero."""
    both = wrapped, _, tenant, _ = twins(peft.LoraConfig(r=4, lora_alpha=6), "LORA_FA", rank=4, alpha=6.0)
    assert tenant.method.name == "lori" and not any(p.any() for p in tenant.parameters())
    import_module("peft.optimizers").create_lorafa_optimizer(wrapped, r=4, lora_alpha=6, lr=1e-3)
    trained = {n: p for n, p in wrapped.named_parameters() if p.requires_grad}
    assert tenant.count() == sum(p.numel() for p in trained.values()) and all("lora_B" in n for n in trained)
    theirs = layers(wrapped, "lora_A")
    for n, m in theirs.items():
        A = tenant.pools[f"{n}.A"]
        assert not A.requires_grad and 0.9 < A.abs().max() * m.in_features**0.5 <= 1, "kaiming_uniform_, a = sqrt(5)"
        copy_in(tenant, {f"{n}.A": m.lora_A.default.weight, f"{n}.B": m.lora_B.default.weight})
    same_answers(both)
    same_gradients(both, lambda: {f"{n}.B": m.lora_B.default.weight for n, m in theirs.items()})
