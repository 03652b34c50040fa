"""What holds of every lifelong method."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from commonweight import Commons
from commonweight.adapt import open_host
from commonweight.lifelong import get
from tests.lifelong import small


@pytest.fixture(scope="module")
def host(model):
    return open_host(model, "classify", dtype="float32")


@pytest.mark.parametrize("method", small.METHODS)
def test_every_task_has_a_tenant_that_a_plain_host_loads(method, model, host, tmp_path):
    made = small.stream(model, tmp_path / "shop", method, host=host, evals=small.evals())
    assert not [*host]
    assert [n for n in made.tenants if n in small.LABELS] == ["first", "second"]
    shop = Commons(tmp_path / "shop", make=False)
    plain = open_host(model, "classify", dtype="float32")
    ids = torch.tensor([[2, 5, 9, 14, 3]])
    for name, label in made.tenants.items():
        if name not in small.LABELS:
            continue
        tenant = plain.load_from(shop, label)
        assert tenant.labels == tuple(sorted(small.LABELS[name]))
        with torch.no_grad(), plain.route(name):
            assert plain.model(input_ids=ids).logits.shape == (1, len(small.LABELS[name]))
    assert shop.verify() == []
    assert all(v is not None for v in made.summary.values())
    assert made.scores[1][0] is not None and made.scores[0][1] is not None
    spent = [s["bytes"] for s in made.record["stages"]]
    assert all(b["all"] == b["pools"] + b["manifests"] + b["carried"] for b in spent)
    kept = made.record["stages"][-1]["memory"]
    declared = get(method).rows != "none" and method != "joint"
    assert bool(kept) == declared
    assert [*made.folder.glob("memory-*")] == ([made.folder / "memory-1.jsonl"] if declared else [])
    page = (made.folder / "report.html").read_text()
    assert "<svg" in page and "src=" not in page


@pytest.mark.parametrize("method", small.METHODS)
def test_a_method_says_what_it_is(method):
    m = get(method)
    assert m.paper and m.carries and m.grows and m.stage.__doc__
    assert all(f.metadata.get("help") for f in dataclasses.fields(m.config))


def test_a_body_that_all_tasks_read_lies_in_the_store_once(model, host, tmp_path):
    one = small.stream(model, tmp_path / "a", "sequential", host=host).record["stages"]
    each = small.stream(model, tmp_path / "b", "separate", host=host).record["stages"]
    head = 2 * (32 + 1) * 4  # of the second task: two classes
    assert one[1]["bytes"]["pools"] - one[0]["bytes"]["pools"] == head
    assert each[1]["bytes"]["pools"] - each[0]["bytes"]["pools"] > 10 * head


def test_a_stream_of_language_modelling(tmp_path):
    from commonweight.adapt import Data
    from commonweight.lifelong import learn
    from tests.adapt import tiny

    model = tiny.base(tmp_path / "llama", "llama")
    host = open_host(model, "lm", dtype="float32")
    tasks = {n: Data(rows=[{"text": r["text"]} for r in tiny.rows(8, i)]) for i, n in enumerate(("one", "two"))}
    held = {n: list(d.rows)[:3] for n, d in tasks.items()}
    for method in ("sequential", "lwf", "replay"):
        made = learn(
            host, tasks, tmp_path / method, method=method, task="lm", options=small.options(method), evals=held,
            epochs=1, batch_size=4, max_length=16,
        )  # fmt: skip
        assert made.record["better"] == ["loss", False]
        assert made.summary["average"] > 0 and made.summary["forgetting"] is not None  # type: ignore[operator]
