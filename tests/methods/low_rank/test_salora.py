"""SaLoRA: what it adds has no part in the kept directions; its start against the formula on the outputs themselves."""

from typing import Any

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.methods.low_rank.test_eva import batch, inputs
from tests.models import answer, make

SMALL = {"rank": 3, "safe": 4, "task": 6, "start": "random"}
VARIANTS = [{"start": "given"}]
SITES = "*.q_proj|*.down_proj"
OPTIONS: dict[str, Any] = {"rank": 3, "safe": 4, "task": 6}


def answers():
    """Rows whose first four tokens are the prompt."""
    found = batch(seed=5)
    labels = found["input_ids"].masked_fill(found["attention_mask"] == 0, -100)
    labels[:, :4] = -100
    return {**found, "labels": labels}


def outer(y, r):
    """The projection onto the first right singular vectors of outputs (tokens, d_out)."""
    v = torch.linalg.svd(y.double(), full_matrices=False)[2][:r]
    return v.T @ v


def test_start_and_what_it_cannot_reach():
    model, given = make("llama")
    host = cw.Host(model, sites=SITES)
    plain = answer(model, given)
    tenant = host.add("t", "salora", alpha=6, rows=[batch()], retain=[answers()], **OPTIONS)
    names = [s.name for s in host.sites]
    safe = answers()
    counts = {**safe, "attention_mask": safe["labels"].ne(-100).long()}
    found = [inputs_of(model, names, safe, counts), inputs_of(model, names, batch(), batch())]
    with torch.no_grad(), host.route("t"):
        assert torch.equal(answer(model, given), plain)
    before = {n: (tenant.pools[f"{n}.A"].detach().clone(), tenant.pools[f"{n}.B"].detach().clone()) for n in names}
    stir(tenant)
    merged = host.merged("t")
    for n in names:
        w = host.weight(n).double()
        kept, task = (outer(x[n].double() @ w.T, r) for x, r in zip(found, (4, 6)))
        u, s, v = torch.linalg.svd(w, full_matrices=False)
        torch.testing.assert_close(
            2.0 * before[n][1].double() @ before[n][0].double(), task @ (u[:, :3] * s[:3] @ v[:3]), rtol=1e-3, atol=1e-4
        )
        A, B = (tenant.pools[f"{n}.{k}"].detach().double() for k in "AB")
        change = 2.0 * (torch.eye(len(w)) - kept) @ (B @ A - before[n][1].double() @ before[n][0].double())
        torch.testing.assert_close(merged[f"{n}.weight"].double() - w, change, rtol=1e-3, atol=1e-4)
        assert (kept @ (merged[f"{n}.weight"].double() - w)).abs().max() < 1e-5


def inputs_of(model, names, given, counts):
    seen = inputs(model, names, {**{k: v for k, v in given.items() if k != "labels"}})
    mask = given["attention_mask"].bool()
    return {n: x[counts["attention_mask"].bool()[mask]] for n, x in seen.items()}


def test_the_start_is_saved(tmp_path):
    host = cw.Host(make("llama")[0], sites=SITES)
    tenant = host.add("t", "salora", rows=[batch()], retain=[answers()], **OPTIONS)
    host.save("t", tmp_path / "t.cw")
    again = cw.Host(make("llama")[0]).load("t", tmp_path / "t.cw")
    assert all(torch.equal(again.pools[n], p) for n, p in tenant.pools.items())


@pytest.mark.parametrize(
    ("options", "given", "message"),
    [
        ({}, {"rows": []}, r"salora begins from data: X\^T X / n of the n tokens with a label .* give retain="),
        ({}, {"retain": []}, r"salora begins from data: X\^T X / n .* give rows="),
    ],
)
def test_what_it_begins_from(options, given, message):
    with pytest.raises(cw.CommonweightError, match=message):
        cw.Host(make("llama")[0], sites=SITES).add("t", "salora", rank=2, **options, **given)


def test_no_direction_is_left():
    with pytest.raises(cw.CommonweightError, match=r"salora: q: safe=8 and task=4 directions of 8 outputs leave none"):
        cw.plan("salora", [cw.Site("q", 8, 8)], rank=2, safe=8, task=4)
