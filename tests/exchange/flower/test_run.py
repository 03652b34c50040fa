"""`flwr run` takes the folder that `exchange app` writes: Flower's own simulation, with Ray."""

import json

import pytest

from commonweight.exchange import simulate
from commonweight.exchange.flower import app
from tests.adapt import tiny
from tests.exchange import small

pytest.importorskip("flwr")
pytest.importorskip("ray")
flower = pytest.importorskip("benchmarks.exchange.flower")


def has_both() -> bool:
    """Flower 1.42 wants this very Ray; another one is this library's own extra."""
    import ray

    return ray.__version__ == "2.55.1"


@pytest.mark.slow
@pytest.mark.skipif(not has_both(), reason="Flower 1.42's simulation wants ray 2.55.1")
def test_flower_s_simulation_is_a_simulated_run(bert, tmp_path):
    rows = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(16))
    how = {"method": "fed-sb", "options": {"rank": 2}, "clients": 4, "rounds": 2, "batch_size": 4, "lr": 1e-2}
    made = app(str(bert), tmp_path / "app", rows=str(rows), dtype="float32", wait=120.0, **how)
    ends = flower.simulated(made, 4, tmp_path / "home")
    found = json.loads((tmp_path / "app-run" / "run.json").read_text())
    wanted = simulate(small.prepared_host(bert), tiny.rows(16), mixed=1, **how)
    assert len(ends) == 2 and [r["replies"] for r in found["curve"]] == [4, 4]
    assert [r["up"] for r in found["curve"]] == pytest.approx([r["up"] for r in wanted.curve], abs=100)
    store = next((tmp_path / "app-run" / "store").rglob("*.safetensors"))
    assert store.stat().st_size > 0
