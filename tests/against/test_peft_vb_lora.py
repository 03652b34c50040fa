"""VB-LoRA against PEFT, on the same numbers."""

import pytest

from tests.against.peft_pair import copy_in, layers, peft, same_answers, same_gradients, twins


@pytest.mark.parametrize("topk", [2, 3])
def test_same_logits_and_gradients(topk):
    config = peft.VBLoRAConfig(r=3, num_vectors=20, vector_length=8, topk=topk)
    both = twins(config, "vb-lora", std=0.3, rank=3, num_vectors=20, vector_length=8, topk=topk)
    theirs = {
        f"{site}.{k}.logits": getattr(m, f"vblora_logits_{k}")["default"]
        for site, m in layers(both[0], "vblora_logits_A").items()
        for k in "AB"
    }
    theirs["vb-lora.bank"] = both[0].base_model.vblora_vector_bank["default"]
    assert theirs.keys() == dict(both[2].named_parameters()).keys()
    copy_in(both[2], theirs)
    same_answers(both)
    same_gradients(both, lambda: theirs)
