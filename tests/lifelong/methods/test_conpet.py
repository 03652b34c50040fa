from __future__ import annotations

from commonweight.adapt import open_host
from commonweight.lifelong.methods.conpet import SELECTOR
from tests.lifelong import small


def test_the_selector_tells_tasks_and_is_a_tenant(model, tmp_path):
    host = open_host(model, "classify", dtype="float32")
    made = small.stream(model, tmp_path / "shop", "conpet", n=2, host=host, evals=small.evals())
    assert SELECTOR in made.tenants
    last = made.record["stages"][-1]
    assert last["memory"] == {"first": 4, "second": 4}
    assert all(last["untold"][n] <= last["scores"][n] + 1e-9 for n in small.evals())
