"""Schedules and penalties: what they say is done, a resumed run ends with the same bits, gradients are right."""

import dataclasses
from itertools import pairwise

import pytest
import torch

import commonweight as cw
from commonweight import CommonweightError
from commonweight.adapt import adapt, open_host
from commonweight.adapt.penalties import penalty
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.core.schedule import Edit
from tests.adapt import tiny
from tests.drawn import TIMES
from tests.laws.subjects import small, stir, variants
from tests.models import answer, make

FOUND = cw.methods.available()
SCHEDULED = [n for n, m in FOUND.items() if m.schedule]
PENALISED = [n for n, m in FOUND.items() if m.penalty]


@pytest.fixture(scope="module")
def folder(bert, llama):
    """The model that a method is tried on: one with scores of a vocabulary where it reads these."""
    return lambda method: llama if FOUND[method].at == "scores" else bert


def trained(folder, method, **more):
    task = "lm" if FOUND[method].at == "scores" else "classify"
    host = open_host(folder(method), task, dtype="float32")
    how = {"method": method, "options": small(method), "batch_size": 4, "epochs": 2, "lr": 5e-3, **more}
    result = adapt(host, "t", tiny.rows(24), task=task, **how)
    return host, result, {n: p.detach().clone() for n, p in result.tenant.named_parameters()}


@pytest.mark.parametrize("method", SCHEDULED)
def test_resumed_equals_undisturbed(folder, tmp_path, method):
    _, whole, a = trained(folder, method, dev_rows=tiny.rows(8, seed=1))
    for i, last in enumerate((3, 10) if TIMES else (7,)):

        def stop(p, last=last):
            if p.step == last:
                raise KeyboardInterrupt

        how = {"checkpoint": tmp_path / str(i), "checkpoint_every": 2, "dev_rows": tiny.rows(8, seed=1)}
        with pytest.raises(KeyboardInterrupt):
            trained(folder, method, **how, progress=stop)
        _, again, b = trained(folder, method, **how, resume=True)
        assert again.tenant.config == whole.tenant.config and a.keys() == b.keys()
        assert all(torch.equal(a[n], b[n]) for n in a)


@pytest.mark.parametrize("method", SCHEDULED)
def test_what_is_left_is_saved_and_opened(folder, tmp_path, method):
    host, _, pools = trained(folder, method)
    host.save("t", tmp_path / "t.cw")
    again = open_host(folder(method), "lm" if FOUND[method].at == "scores" else "classify", dtype="float32")
    found = again.load("t", tmp_path / "t.cw")
    assert all(torch.equal(found.pools[n], p) for n, p in pools.items())
    assert all(p.requires_grad for p in host["t"].parameters())
    ids = torch.randint(5, 40, (3, 7))
    with torch.no_grad(), host.route("t"), again.route("t"):
        assert torch.equal(host.model(ids).logits, again.model(ids).logits)


@pytest.mark.parametrize("method", PENALISED)
def test_a_penalty_has_the_gradient_of_differences(method):
    told = 0
    for options in variants(method):
        tenant = stir(cw.Host(make("llama")[0]).add("t", method, **options))
        pools = {n: p.detach().double().requires_grad_() for n, p in tenant.named_parameters()}
        value = tenant.method.penalty(tenant.config, tenant.plan, pools)
        if not value.requires_grad:
            assert value == 0
            continue
        value.backward()
        g = torch.Generator().manual_seed(0)
        ways = {n: torch.randn(p.shape, generator=g).double() for n, p in pools.items()}
        up, down = (
            tenant.method.penalty(
                tenant.config, tenant.plan, {n: (p.detach() + e * ways[n]).requires_grad_() for n, p in pools.items()}
            ).item()
            for e in (1e-6, -1e-6)
        )
        along = sum((p.grad * ways[n]).sum().item() for n, p in pools.items() if p.grad is not None)
        assert (up - down) / 2e-6 == pytest.approx(along, rel=1e-4)
        told += along != 0
    assert told, "a penalty that depends on no pool"


def test_a_penalty_counts_by_the_share_of_rows():
    host = cw.Host(make("llama")[0])
    a, b = stir(host.add("a", "adalora", rank=2, target=1)), host.add("b", "lora", rank=2)
    alone_ = a.method.penalty(a.config, a.plan, a.pools)
    mixed = penalty([a, b], torch.tensor([a.number, b.number, b.number, b.number]))
    torch.testing.assert_close(mixed, alone_ / 4)
    assert penalty([b], None) == 0


@dataclasses.dataclass(frozen=True)
class Told:
    """Says at each step what a test wants it to."""

    edits: dict

    def begin(self, plan, pools, steps):
        return {"seen": torch.zeros(1)}, self.edits.get(0, Edit())

    def after(self, at, state):
        assert at.step == int(state["seen"]) + 1 and at.steps == 3
        assert all(n in at.pools for n in at.grads)
        return {"seen": state["seen"] + 1}, self.edits.get(at.step, Edit())

    def settled(self, step, steps):
        return True


def run(edits, steps=3, lr=0.1):
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = stir(host.add("t", "lora", rank=2))
    tenant.method = dataclasses.replace(tenant.method, schedule=lambda config, plan: Told(edits))
    optimizer = torch.optim.AdamW(alone(tenant.param_groups(lr)), weight_decay=0.0)
    at = Scheduled(tenant, optimizer, None, steps)
    at.begin()
    ids, seen = torch.randint(5, 40, (2, 6)), []
    for step in range(1, steps + 1):
        with host.route("t"):
            host.model(ids, labels=ids).loss.backward()
        at.masked()
        optimizer.step()
        at.after(step)
        seen.append({n: p.detach().clone() for n, p in tenant.named_parameters()})
        optimizer.zero_grad()
    return tenant, optimizer, at, seen


NAMES = [f"model.layers.{i}.self_attn.q_proj.{k}" for i in (0, 1) for k in "AB"]


def test_values_and_masks():
    one = torch.ones(2, 32)
    mask = torch.arange(64).view(2, 32) % 2
    *_, seen = run({1: Edit(values={NAMES[0]: 7 * one}, masks={NAMES[2]: mask})})
    assert torch.equal(seen[0][NAMES[0]], 7 * one) and not torch.equal(seen[1][NAMES[0]], 7 * one)
    for pools in seen:
        assert not pools[NAMES[2]][mask == 0].any() and pools[NAMES[2]][mask == 1].all()


def test_held_numbers_stay_whatever_the_optimizer_does():
    mask = torch.arange(64).view(2, 32) % 2 == 0
    *_, seen = run({1: Edit(held={NAMES[0]: mask}), 2: Edit(moments={NAMES[0]: torch.tensor(2.0)})})
    first, *later = (pools[NAMES[0]] for pools in seen)
    for pool in later:
        assert torch.equal(pool[mask], first[mask]) and not torch.equal(pool[~mask], first[~mask])


def test_resting_pools_do_not_move():
    tenant, *_, seen = run({0: Edit(resting=frozenset(NAMES[:2])), 2: Edit(resting=frozenset(NAMES[2:]))})
    moved = [[n for n in NAMES if not torch.equal(before[n], now[n])] for before, now in pairwise(seen)]
    assert moved == [NAMES[2:], NAMES[:2]]
    assert [n for n, p in tenant.named_parameters() if not p.requires_grad] == NAMES[2:]


def test_rates():
    _, optimizer, at, seen = run({1: Edit(rates={NAMES[0]: 0.0, NAMES[1]: 0.5}), 2: Edit(rates={NAMES[1]: 2.0})})
    assert torch.equal(seen[0][NAMES[0]], seen[2][NAMES[0]])
    named = {id(p): n for n, p in at.pools.items()}
    rates = {named[id(g["params"][0])]: g["lr"] for g in optimizer.param_groups}
    assert [rates[n] for n in NAMES] == pytest.approx([0.0, 0.2, 0.1, 0.1])


def test_a_rate_of_zero_from_the_beginning_holds_for_the_first_step():
    """Also where nothing warms up, and the first step's rate was set before the schedule began."""
    tenant = cw.Host(make("llama")[0], sites="*.q_proj").add("t", "lora", rank=2)
    tenant.method = dataclasses.replace(tenant.method, schedule=lambda *_: Told({0: Edit(rates={NAMES[0]: 0.0})}))
    optimizer = torch.optim.AdamW(alone(tenant.param_groups(0.1)))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / 3)
    Scheduled(tenant, optimizer, rates, 3).begin()
    assert [g["lr"] for g in optimizer.param_groups] == [0.0, 0.1, 0.1, 0.1]
    optimizer.step()
    rates.step()
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([0.0] + [0.2 / 3] * 3)


def test_forgotten_moments():
    tenant, optimizer, _, _ = run({3: Edit(moments={NAMES[0]: torch.zeros(()), NAMES[2]: 0.5 * torch.ones(2, 32)})})
    pools = dict(tenant.named_parameters())
    assert not optimizer.state[pools[NAMES[0]]]["exp_avg"].any() and optimizer.state[pools[NAMES[1]]]["exp_avg"].any()
    _, other, _, _ = run({})
    whole = other.state[other.param_groups[2]["params"][0]]["exp_avg_sq"]
    torch.testing.assert_close(optimizer.state[pools[NAMES[2]]]["exp_avg_sq"], 0.5 * whole)


class Asks:
    """Compares what the loss would be with other values, and writes into a frozen pool."""

    def __init__(self, name):
        self.name, self.told = name, []

    def begin(self, plan, pools, steps):
        return {}, Edit()

    def after(self, at, state):
        gain, site = f"{self.name}.gain", self.name
        self.told += [(at.loss({gain: torch.zeros(1)}), at.loss({}), at.weight(site))]
        return state, Edit(values={gain: torch.tensor([0.25])})

    def settled(self, step, steps):
        return True


def test_what_a_schedule_sees():
    model, _ = make("llama")
    host, ids = cw.Host(model, sites="*.q_proj"), torch.randint(5, 40, (2, 6))
    tenant, name = stir(host.add("t", "increlora", target=2)), NAMES[0][:-2]
    asks = Asks(name)
    tenant.method = dataclasses.replace(tenant.method, schedule=lambda config, plan: asks)
    at = Scheduled(tenant, torch.optim.AdamW(alone(tenant.param_groups(0.1))), None, 2)
    at.begin()

    def loss():
        with host.route("t"):
            return host.model(ids, labels=ids).loss.item()

    with torch.no_grad():
        before = loss()
        at.after(1, loss)
        gains = [tenant.pools[f"{n[:-2]}.gain"].item() for n in NAMES[::2]]
        assert gains[0] == 0.25 and gains[1] != 0.25
        without, same, weight = asks.told[0]
        assert same == before and without != before and torch.equal(weight, host.weight(name))
    kept, facts = at.kept()
    kept = {n: v.clone() for n, v in kept.items()}
    tenant.pools[f"{name}.gain"].zero_()
    at.restore(kept, facts)
    assert tenant.pools[f"{name}.gain"].item() == 0.25
    with pytest.raises(CommonweightError, match=r"wants the loss of rows: Scheduled.after\(step, loss\)"):
        at.after(2)


def test_a_name_that_is_no_pool():
    with pytest.raises(CommonweightError, match=r"lora: its schedule names x, no pool that it trains"):
        run({1: Edit(values={"x": torch.ones(1)})})


def test_what_a_schedule_does_not_go_with(folder):
    with pytest.raises(CommonweightError, match="one rate for all pools, adalora one for each"):
        trained(folder, "adalora", optimizer="prodigy")


def test_compact_keeps_the_answers():
    model, inputs = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "adalora", rank=3, target=1, modules_to_save=["lm_head"], sites="*proj"))
    with torch.no_grad():
        for n, p in tenant.named_parameters():
            if n.endswith(".d"):
                p[1:] = 0
    with torch.no_grad(), host.route("t"):
        before, whole = answer(model, inputs), tenant.nbytes
    found = host.compact("t")
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, inputs), before)
    assert found is host["t"] and found.beside == tenant.beside
    assert found.nbytes < 0.7 * whole and host.compact("t").config == found.config


@pytest.mark.parametrize("method", ["adalora", "sora", "light-peft", "alora", "apt", "triadaptlora"])
def test_what_has_no_directions_any_more_has_none_in_the_form_of_that_form(method):
    """A site without pools says nothing; `adapt` gives the stored form, and `compare` asks for it once more."""
    host = cw.Host(make("bert")[0])
    tenant = stir(host.add("t", method, **small(method), ranks=[["*query", 0], ["*key", 2], ["*", 1]]))
    nbytes = host.compact("t").nbytes
    config = host.compact("t").config
    assert tenant.nbytes == nbytes and host.compact("t").config == config
    assert not any("query.A" in n for n in tenant.pools)
