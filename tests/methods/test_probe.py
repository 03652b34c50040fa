"""The probe has nothing but its head."""

import commonweight as cw


def test_no_use_and_no_pool():
    plan = cw.plan("probe", [cw.Site("q", 8, 8)])
    assert plan.count() == 0 and not plan.uses
