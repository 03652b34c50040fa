"""What the benchmark of methods on models of their own makes of a comparison of language models."""

from benchmarks.compare import small
from benchmarks.elsewhere.bases import TASKS
from benchmarks.elsewhere.page import scored


def test_a_share_of_tokens_stands_for_accuracy_wherever_a_run_is_measured():
    def runs(*shares):
        each = [{"token_accuracy": s, "loss": 1.0, "n": 500} for s in shares]
        return [{"task": t, "seed": 0, "state": "done", "test": s, "dev": s} for t, s in zip(TASKS, each)]

    found = {
        "metric": "loss", "comparison": {"reference": "lora"},
        "points": [{"method": m, "runs": runs(*s)} for m, s in (("lora", (0.9, 0.8, 0.7)), ("pema", (0.6, 0.6, 0.6)))],
    }  # fmt: skip
    lora, pema = small(scored(found, "token_accuracy"))["points"]
    assert abs(lora["values"]["mean of tasks"]["mean"] - 0.8) < 1e-9 and lora["difference"] is None
    assert abs(pema["difference"]["mean"] + 0.2) < 1e-9
    assert pema["runs"][0]["test"] == pema["runs"][0]["dev"] == {"accuracy": 0.6}
