"""The probe has nothing but its head."""

import pytest

import commonweight as cw
from tests.models import make


def test_no_use_and_no_pool():
    plan = cw.plan("probe", [cw.Site("q", 8, 8)])
    assert plan.count() == 0 and not plan.uses


def test_the_head_learns_five_times_as_fast():
    model, _ = make("bert")
    host = cw.Host(cw.Classifier(model))
    tenant = host.add("t", "probe", labels=3)
    assert {k: p.lr for k, p in tenant.plan.pools.items()} == {"head.W": 5.0, "head.b": 5.0}
    assert [g["lr"] for g in tenant.param_groups(0.01) for _ in g["params"]] == pytest.approx([0.05, 0.05])
