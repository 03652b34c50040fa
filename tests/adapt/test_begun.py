"""Training an activated LoRA: rows without its invocation tokens are told."""

import pytest

from commonweight import CommonweightError
from commonweight.adapt import adapt, open_host
from commonweight.adapt.base import tokenizer_of


def rows(some: str) -> list[dict[str, str]]:
    return [{"prompt": f"w{i % 5} {some if i % 4 == 0 else 'w7'}", "completion": " w30 w31"} for i in range(8)]


def trained(llama, word: str, some: str = "w7", **more):
    host = open_host(llama, "lm", dtype="float32")
    tokens = tokenizer_of(host.model)(word, add_special_tokens=False)["input_ids"]
    options = {"invocation": tokens}
    return adapt(host, "t", rows(some), task="lm", method="lora", options=options, epochs=3, lr=1e-2, **more)


def test_it_learns(llama):
    losses = [c["loss"] for c in trained(llama, "w7", batch_size=4).curve if "loss" in c]
    assert losses[-1] < losses[0] - 0.1


def test_rows_without_the_tokens_are_told(llama):
    with pytest.warns(UserWarning, match=r"t: 2 rows of 8 without the invocation tokens .* the base answers these"):
        trained(llama, "w7", some="w9")
    with pytest.raises(CommonweightError, match=r"t: 8 rows of 8 without the invocation tokens .* nothing is trained"):
        trained(llama, "w33")


def test_packed_rows_have_no_one_beginning(llama):
    with pytest.raises(CommonweightError, match="packing: lora edits positions of a sequence"):
        trained(llama, "w7", packing=True)
