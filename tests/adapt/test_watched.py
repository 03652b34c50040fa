"""Schedules that are shown states and their gradients: each tenant its own, once, over the passes of a step."""

from functools import partial

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import commonweight as cw
from commonweight import CommonweightError
from commonweight.adapt import Data, adapt, adapt_together, open_host
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.core.schedule import Watching
from commonweight.host.heard import Heard
from tests.adapt import tiny
from tests.laws.subjects import stir
from tests.models import make

OPTIONS = {"rank": 1, "most": 2, "times": 2.0, "rounds": 2, "begin": 0.0, "heads": 4, "prune": 0.5}
HOW = {"method": "apt", "options": OPTIONS, "lr": 5e-3, "epochs": 1}


@pytest.fixture
def host():
    host = cw.Host(make("llama")[0])
    for i, n in enumerate("ab"):
        stir(host.add(n, "apt", **OPTIONS), i)
    stir(host.add("c", "lora", rank=2), 3)
    stir(host.add("d", "light-peft", rank=2, heads=4), 4)
    return host


def rows(lengths=(7, 4, 5, 6)):
    ids = torch.randint(1, 50, (len(lengths), max(lengths)), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()}


def counted(host, route, batch, names):
    """What each tenant's schedule made of one pass, whose loss is a sum over tokens."""
    found = {}
    for n in names:
        optimizer = torch.optim.AdamW(alone(host[n].param_groups(1e-3)))
        found[n] = Scheduled(host[n], optimizer, None, 4)
    with host.listening() as heard, host.route(route):
        for schedule in found.values():
            schedule.watch(heard)
        logits = host.model(**batch, use_cache=False).logits
    logits[batch["attention_mask"].bool()].square().sum().backward()
    return {n: s.counted for n, s in found.items()}


def close(a, b):
    assert a.keys() == b.keys() and any(v.any() for v in a.values())
    for k, v in a.items():
        torch.testing.assert_close(v, b[k], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("route", [["a", "b", "c", "a"], ["b", None, "a", "d"], ["a", "b", "b", "a"]])
def test_a_mixed_batch_shows_each_tenant_what_it_is_shown_alone(host, route):
    batch, names = rows(), {"a", "b"}
    mixed = counted(host, route, batch, names)
    for n in names:
        mine = [i for i, r in enumerate(route) if r == n]
        width = int(batch["attention_mask"][mine].sum(1).max())
        close(mixed[n], counted(host, n, {k: v[mine, :width] for k, v in batch.items()}, [n])[n])


def test_a_route_of_tokens(host):
    batch = rows((5, 5))
    numbers = torch.tensor([[host["a"].number] * 5, [host["b"].number] * 3 + [-1] * 2])
    got = counted(host, numbers, batch, ["a", "b"])
    assert {float(v) for k, v in got["a"].items() if k.endswith("tokens")} == {5.0}
    close(got["a"], counted(host, "a", {k: v[:1] for k, v in batch.items()}, ["a"])["a"])


def test_what_is_recomputed_is_shown_once(host):
    plain = counted(host, "a", rows(), ["a"])["a"]
    for layer in host.model.model.layers:
        layer.forward = partial(checkpoint, layer.forward, use_reentrant=False)
    close(plain, counted(host, "a", rows(), ["a"])["a"])


def test_others_are_shown_nothing(host, monkeypatch):
    """Not where nobody watches, as with masks of `light-peft`; nor to who watches another."""
    monkeypatch.setattr(Heard, "show", lambda *_: pytest.fail("shown"))
    assert not isinstance(host["d"].method.scheduled(host["d"].config, host["d"].plan), Watching)
    with host.listening(), host.route("d"):
        host.model(**rows())
    monkeypatch.undo()
    assert not any(v.any() for v in counted(host, "d", rows(), ["a"])["a"].values())


def test_a_loop_of_one_s_own(host):
    optimizer = torch.optim.AdamW(alone(host["a"].param_groups(1e-3)))
    schedule = Scheduled(host["a"], optimizer, None, 4)
    schedule.begin()
    with pytest.raises(CommonweightError, match=r"apt: its schedule is shown states and their gradients, and nobody"):
        schedule.after(1)
    few = cw.Host(make("llama")[0])
    few.add("t", "apt", sites="*.layers.0.mlp.down_proj", **OPTIONS)
    with pytest.raises(CommonweightError, match="nothing in front of it is trained"):
        counted(few, "t", rows(), ["t"])


def trained(folder, **more):
    host = open_host(folder, dtype="float32")
    return adapt(host, "t", tiny.rows(16), **{**HOW, "batch_size": 8, **more}).tenant


def masks(tenant):
    return {n: p.clone() for n, p in tenant.pools.items() if n.endswith((".kept", ".bits"))}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_a_run_prunes_the_same_over_smaller_batches_and_with_checkpoints(bert):
    found = masks(trained(bert))
    assert len(found) == 4 and any((p != 255).any() for p in found.values())
    assert equal(found, masks(trained(bert, batch_size=4, accumulate=2)))
    assert equal(found, masks(trained(bert, gradient_checkpointing=True)))
    with pytest.raises(CommonweightError, match="compile does not go together with routers that are listened to, or"):
        trained(bert, compile=True)


def test_it_goes_on_where_it_was_killed(bert, tmp_path):
    """Between the two rounds, where masks are on their way, and after the last."""
    how = {"epochs": 2, "batch_size": 4, "dev_rows": tiny.rows(8, seed=1), "lr": 0.05}
    whole = trained(bert, **how)
    assert whole.config.masks == "bits" and any((p != 255).any() for p in masks(whole).values())
    for last in (3, 6):

        def stop(p, last=last):
            if p.step == last:
                raise KeyboardInterrupt

        kept = {**how, "checkpoint": tmp_path / f"c{last}", "checkpoint_every": 1}
        with pytest.raises(KeyboardInterrupt):
            trained(bert, **kept, progress=stop)
        again = trained(bert, **kept, resume=True)
        assert again.config == whole.config and equal(dict(whole.pools), dict(again.pools))


def test_together_each_prunes_its_own(bert):
    host = open_host(bert, dtype="float32")
    data = {"a": Data(rows=tiny.rows(16)), "b": Data(rows=tiny.rows(8, 1))}
    got = adapt_together(host, data, **{**HOW, "options": {**OPTIONS, "kurtosis": False}}, batch_size=24)
    for n, d in data.items():
        one = adapt(
            open_host(bert, dtype="float32"), n, d.rows, **{**HOW, "options": {**OPTIONS, "kurtosis": False}},
            batch_size=24,
        ).tenant  # fmt: skip
        assert equal(masks(one), masks(got[n].tenant)), "one step, from the same start"
