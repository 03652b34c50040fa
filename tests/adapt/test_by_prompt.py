"""Training of a tenant that goes by the embedding of a row's prompt: completions say where it ends."""

import pytest
import torch

from commonweight import CommonweightError
from commonweight.adapt import adapt, evaluate, open_host
from commonweight.adapt.base import tokenizer_of
from commonweight.adapt.tasks import LM
from commonweight.adapt.tasks.base import padded
from tests.laws.subjects import stir

ROWS = [{"prompt": f"w{i} w3", "completion": f"w{20 + i} w4"} for i in range(8)] * 2
PSEC = {"method": "psec", "over": ["a", "b"], "options": {"hidden": 4, "context": "row"}}


@pytest.fixture
def host(llama):
    out = open_host(llama, "lm", dtype="float32")
    for i, n in enumerate("ab"):
        stir(out.add(n, "lora", rank=2), i)
    return out


def test_a_tenant_learns_by_prompts_and_is_measured_by_them(host):
    result = adapt(host, "t", ROWS, task="lm", epochs=2, lr=0.05, batch_size=8, accumulate=2, dev_rows=ROWS[:5], **PSEC)
    assert result.tenant.prompted and result.curve[-1]["loss"] < result.curve[0]["loss"]
    got = evaluate(host, "t", ROWS, "lm")
    task, total = LM(tokenizer_of(host.model), 64), 0.0
    for e in task.examples(ROWS[:8]):
        n = e["labels"].count(-100)
        with torch.no_grad(), host.route("t", prompts=[e["input_ids"][:n]]):
            logits = host.model(**padded([e["input_ids"]], 0)).logits[0, n - 1 : -1].float()
        total += torch.nn.functional.cross_entropy(logits, torch.tensor(e["input_ids"][n:]), reduction="sum").item()
    assert got["loss"] * got["tokens"] == pytest.approx(2 * total, rel=1e-4)


@pytest.mark.parametrize(
    "rows, more, told",
    [
        ([{"text": "w1 w2 w3 w4"}] * 8, {}, "and 8 of 8 rows have none"),
        (ROWS, {"packing": True}, "a packed one has many rows"),
    ],
)
def test_rows_without_a_prompt_are_refused(host, rows, more, told):
    with pytest.raises(CommonweightError, match=told):
        adapt(host, "t", rows, task="lm", **PSEC, **more)
    assert "t" not in host
