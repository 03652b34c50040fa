"""PiSSA against PEFT, which moves the base itself: the same function from an untouched base."""

import pytest
import torch

from tests.against.peft_pair import copy_in, layers, peft, same_answers, same_gradients, twins


def tensors(wrapped):
    found = layers(wrapped, "lora_A").items()
    return {f"{site}.{k}": getattr(m, f"lora_{k}")["default"].weight for site, m in found for k in "AB"}


@pytest.mark.parametrize("alpha", [4, 6])
def test_same_logits_and_gradients(alpha):
    config = peft.LoraConfig(r=4, lora_alpha=alpha, init_lora_weights="pissa")
    both = twins(config, "pissa", rank=4, alpha=float(alpha))
    copy_in(both[2], tensors(both[0]))
    same_answers(both)
    same_gradients(both, lambda: tensors(both[0]))


def test_same_start_up_to_the_signs_of_singular_vectors():
    config = peft.LoraConfig(r=4, lora_alpha=6, init_lora_weights="pissa")
    wrapped, _, tenant, _ = twins(config, "pissa", std=0.0, rank=4, alpha=6.0)
    for name, value in tensors(wrapped).items():
        torch.testing.assert_close(tenant.pools[name].abs(), value.abs(), rtol=1e-3, atol=1e-5)
