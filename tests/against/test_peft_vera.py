"""VeRA against PEFT, on the same numbers."""

from tests.against.peft_pair import copy_in, layers, peft, same_answers, same_gradients, twins


def test_same_logits_and_gradients():
    both = twins(peft.VeraConfig(r=12), "vera", rank=12)
    theirs = {
        f"{site}.{k}": getattr(m, f"vera_lambda_{k}")["default"]
        for site, m in layers(both[0], "vera_lambda_d").items()
        for k in "db"
    }
    assert theirs.keys() == dict(both[2].named_parameters()).keys()
    shared = both[0].base_model
    copy_in(both[2], {**theirs, "vera.A": shared.vera_A["default"], "vera.B": shared.vera_B["default"]})
    same_answers(both)
    same_gradients(both, lambda: theirs)
