"""FFA-LoRA: nobody sends A, which all have."""

from tests.exchange import small


def test_a_is_of_the_seed_and_stays(bert):
    plans = [small.prepared(bert, "ffa-lora", seed=s) for s in (0, 0, 1)]
    pools = [p.tenant.pools for p in plans]
    name = next(n for n in pools[0] if n.endswith(".A"))
    assert (pools[0][name] == pools[1][name]).all() and (pools[0][name] != pools[2][name]).any()
    p = plans[0]
    assert all(not n.endswith(".A") for n in p.setting.travels)
    sites = [u.site for u in p.setting.plan.uses if "B" in u.reads]
    out = sum(p.host.weight(s).shape[0] for s in sites)
    assert p.setting.count == 4 * out + 3 * 33  # r d_out a site, and the head
