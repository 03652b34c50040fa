"""DoRA against PEFT, on the same numbers: logits, and gradients with the length held constant."""

import torch

from tests.against.peft_pair import copy_in, layers, peft, same_answers, same_gradients, twins


def tensors(wrapped):
    out = {}
    for site, m in layers(wrapped, "lora_A").items():
        out |= {f"{site}.{k}": getattr(m, f"lora_{k}")["default"].weight for k in "AB"}
        out[f"{site}.m"] = m.lora_magnitude_vector["default"].weight
    return out


def test_same_logits_and_gradients():
    both = twins(peft.LoraConfig(r=4, lora_alpha=6, use_dora=True), "dora", rank=4, alpha=6.0)
    theirs = tensors(both[0])
    assert theirs.keys() == dict(both[2].named_parameters()).keys()
    copy_in(both[2], theirs)
    same_answers(both)
    same_gradients(both, lambda: theirs)


def test_same_magnitudes_at_the_start():
    wrapped, _, tenant, _ = twins(peft.LoraConfig(r=4, use_dora=True), "dora", std=0.0, rank=4)
    for name, value in tensors(wrapped).items():
        if name.endswith(".m"):
            torch.testing.assert_close(tenant.pools[name], value)
