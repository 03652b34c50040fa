"""Training an activated LoRA: rows without its invocation tokens are told."""

import pytest
import torch

from commonweight import CommonweightError
from commonweight.adapt import adapt, open_host
from commonweight.adapt.base import tokenizer_of
from commonweight.adapt.tasks import LM
from tests.adapt.alone import packed_as_alone


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


def test_packed_rows_have_a_beginning_each(llama):
    """The loss and the gradients of rows in one sequence are those of the rows alone."""
    host = open_host(llama, "lm", dtype="float32")
    host.model.double()
    tokenizer = tokenizer_of(host.model)
    tokens = tokenizer("w7 w8", add_special_tokens=False)["input_ids"]
    tenant = host.add("t", "lora", rank=2, invocation=tokens)
    with torch.no_grad():
        for p in tenant.parameters():
            p.normal_()
    prompts = ["w1 w7 w8 w2", "w3 w4", "w7 w8 w7 w8", "w5 w7", "w8 w9"]  # w7 | w8 stand in two rows
    task = LM(tokenizer, 64)
    examples = task.examples([{"prompt": p, "completion": " w30 w31"} for p in prompts])
    assert len(packed_as_alone(host, "t", task, examples)) == 1


def test_it_learns_packed(llama):
    losses = [c["loss"] for c in trained(llama, "w7", batch_size=1, packing=True).curve if "loss" in c]
    assert losses[-1] < losses[0] - 0.1


def test_a_classifier_learns(bert):
    host = open_host(bert, "classify", dtype="float32")
    tokens = tokenizer_of(host.model)("w7", add_special_tokens=False)["input_ids"]
    given = [{"text": f"w{i % 5} w7 w{20 + i % 2}", "label": str(i % 2)} for i in range(16)]
    result = adapt(host, "t", given, method="lora", options={"invocation": tokens}, epochs=8, lr=2e-2, batch_size=8)
    losses = [c["loss"] for c in result.curve if "loss" in c]
    assert losses[-1] < losses[0] - 0.1
