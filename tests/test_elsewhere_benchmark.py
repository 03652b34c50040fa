"""What the benchmark of methods on models of their own makes of a comparison of language models."""

from benchmarks.compare import small
from benchmarks.elsewhere.bases import TASKS
from benchmarks.elsewhere.page import beside, renewed, scored


def test_a_share_of_tokens_stands_for_accuracy_wherever_a_run_is_measured():
    def runs(*shares):
        each = [{"token_accuracy": s, "loss": 1.0, "n": 500} for s in shares]
        return [{"task": t, "seed": 0, "state": "done", "test": s, "dev": s} for t, s in zip(TASKS, each)]

    shares = {"lora": (0.9, 0.8, 0.7), "pema": (0.6, 0.6, 0.6)}
    found = scored([{"method": m, "runs": runs(*s)} for m, s in shares.items()], "token_accuracy")
    lora, pema = small({"metric": "accuracy", "points": beside(found, "lora")})["points"]
    assert abs(lora["values"]["mean of tasks"]["mean"] - 0.8) < 1e-9 and lora["difference"] is None
    assert abs(pema["difference"]["mean"] + 0.2) < 1e-9
    assert pema["runs"][0]["test"] == pema["runs"][0]["dev"] == {"accuracy": 0.6}


def test_a_method_measured_again_keeps_its_memory_and_time_and_its_reference():
    def point(method, share, memory):
        values = {"mean of tasks": {"mean": share, "seeds": [share]}}
        return {"name": method, "method": method, "values": values, "peak_memory": memory, "seconds_per_step": memory}

    part = {"points": beside([point("pema", 0.6, 1), point("lora", 0.9, 2)], "lora")}
    pema, lora = renewed(part, [point("pema", 0.7, 5)], "lora")["points"]
    assert (pema["peak_memory"], pema["seconds_per_step"], lora) == (1, 1, part["points"][1])
    assert abs(pema["difference"]["mean"] + 0.2) < 1e-9 and abs(part["points"][0]["difference"]["mean"] + 0.3) < 1e-9
