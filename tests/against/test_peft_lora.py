"""LoRA and rsLoRA against PEFT, on the same numbers."""

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
