"""Schedules that listen to their tenant's routers: counts of a step, and who may not have one."""

import pytest
import torch

import commonweight as cw
from commonweight import CommonweightError
from commonweight.adapt import Data, adapt, adapt_together, open_host
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.adapt.trainer import Part, heard
from tests.adapt import tiny
from tests.models import make

OPTIONS = {"rank": 4, "active": 2, "bias": 0.01}
HOW = {"method": "smora", "options": OPTIONS, "sites": "*.query|*.value", "lr": 5e-3}


def shifts(tenant):
    return {n: p.clone() for n, p in tenant.pools.items() if n.endswith(".shift")}


def trained(folder, **more):
    host = open_host(folder, dtype="float32")
    how = {**HOW, "batch_size": 8, "epochs": 1, **more}
    return host, adapt(host, "t", tiny.rows(16), **how)


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_the_bias_of_a_run(bert, tmp_path):
    """Two steps of it: whole numbers of moves; the same over smaller batches, with checkpoints, and in the file."""
    host, result = trained(bert)
    found = shifts(result.tenant)
    assert len(found) == 4 and all(set((p / 0.01).round().int().tolist()) <= {-2, -1, 0, 1, 2} for p in found.values())
    assert any(p.abs().max() > 0.015 for p in found.values())
    assert equal(found, shifts(trained(bert, batch_size=4, accumulate=2)[1].tenant))
    assert equal(found, shifts(trained(bert, gradient_checkpointing=True)[1].tenant))
    host.save("t", tmp_path / "t.cw")
    assert equal(found, shifts(open_host(bert, dtype="float32").load("t", tmp_path / "t.cw")))
    with pytest.raises(CommonweightError, match="compile does not go together with routers that are listened to"):
        trained(bert, compile=True)


def test_it_goes_on_where_it_was_killed_and_is_kept_with_the_best(bert, tmp_path):
    how = {"epochs": 3, "batch_size": 4, "dev_rows": tiny.rows(8, seed=1), "lr": 0.05}
    states = []
    host = open_host(bert, dtype="float32")

    def see(p):
        if p.dev is not None:
            states.append((p.dev["accuracy"], shifts(host["t"])))

    whole = adapt(host, "t", tiny.rows(16), **{**HOW, **how}, progress=see).tenant
    best = max(range(len(states)), key=lambda i: (states[i][0], -i))
    assert equal(shifts(whole), states[best][1])

    def stop(p):
        if p.step == 5:
            raise KeyboardInterrupt

    kept = {**how, "checkpoint": tmp_path / "c", "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        trained(bert, **kept, progress=stop)
    again = trained(bert, **kept, resume=True)[1].tenant
    assert equal(dict(whole.pools), dict(again.pools))


def test_together_each_counts_its_own(bert):
    host = open_host(bert, dtype="float32")
    data = {"a": Data(rows=tiny.rows(16)), "b": Data(rows=tiny.rows(8, 1))}
    got = adapt_together(host, data, **HOW, epochs=1, batch_size=24)
    for n, d in data.items():
        alone_ = open_host(bert, dtype="float32")
        one = adapt(alone_, n, d.rows, **HOW, epochs=1, batch_size=24).tenant
        assert equal(shifts(one), shifts(got[n].tenant)), "one step, from the same start"


def test_a_loop_of_one_s_own():
    model, batch = make("llama")
    host = cw.Host(model)
    tenant = host.add("t", "smora", **OPTIONS)
    optimizer = torch.optim.AdamW(alone(tenant.param_groups()))
    schedule = Scheduled(tenant, optimizer, None, 2)
    schedule.begin()
    with host.listening() as heard, host.route("t"):
        model(**batch).logits.mean().backward()
    schedule.hear(heard)
    schedule.after(1)
    assert any(p.any() for p in shifts(tenant).values())
    with pytest.raises(CommonweightError, match="nobody listened in this step"):
        schedule.after(2)


def test_where_nobody_can_hear():
    host = cw.Host(make("moe")[0])
    tenant = host.add("t", "smora", sites="*experts*", **OPTIONS)
    with pytest.raises(CommonweightError, match="nobody hears what smora's routers say"):
        heard(Part(tenant, None, [], []))
