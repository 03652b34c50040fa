"""A schedule that makes the plan anew: a run with room in its tensors says what it must give."""

import dataclasses
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch

import commonweight as cw
from commonweight import CommonweightError
from commonweight.adapt import Data, adapt, adapt_together, open_host, optimizers
from commonweight.adapt.best import Best
from commonweight.adapt.checkpoint import Store
from commonweight.adapt.following import follow
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.core.schedule import Edit, carried
from commonweight.host.replanned import become
from tests.adapt import tiny
from tests.laws.subjects import small, stir
from tests.models import answer, make

SITES = [f"model.layers.{i}.self_attn.q_proj" for i in (0, 1)]


def test_carried_is_row_by_row():
    g = torch.Generator().manual_seed(0)
    old = torch.randn(3, 4, 2, generator=g)
    places = torch.tensor([2, -1, 0, 0]), None, torch.tensor([-1, 1])
    for fill in (7.0, torch.randn(4, 4, 2, generator=g)):
        new = carried(old, places, fill)
        assert new.shape == (4, 4, 2)
        for i, a in enumerate(places[0].tolist()):
            for j in range(4):
                for k, b in enumerate(places[2].tolist()):
                    other = fill if isinstance(fill, float) else fill[i, j, k]
                    assert new[i, j, k] == (other if min(a, b) < 0 else old[a, j, b])
    assert carried(old, (torch.tensor([], dtype=torch.long), None, None)).shape == (0, 4, 2)
    assert not carried(old[:0], (torch.tensor([-1, -1]), None, None)).any()


def ranked(config, ranks):
    """A LoRA of these ranks, at the scale of the first one."""
    return replace(config, ranks=tuple(ranks.items()), alphas=tuple((s, 2.0 * r) for s, r in ranks.items()))


NEW = torch.linspace(-1, 1, 64).view(2, 32)  # the rows of A that come


@dataclasses.dataclass(frozen=True)
class Resizes:
    """After step 2 the first site has two directions more, after step 4 the second loses its first one."""

    config: object
    resizes = True

    def begin(self, plan, pools, steps):
        return {}, Edit()

    def after(self, at, state):
        (a, b), (one, two) = SITES, (torch.tensor([0, 1, -1, -1]), torch.tensor([1]))
        if at.step == 2:
            values = {f"{a}.A": torch.cat([at.pools[f"{a}.A"], NEW])}
            return state, Edit(
                values=values, places={f"{a}.A": (one, None), f"{a}.B": (None, one)},
                config=ranked(self.config, {a: 4, b: 2}),
            )  # fmt: skip
        if at.step == 4:
            places = {f"{b}.A": (two, None), f"{b}.B": (None, two)}
            return state, Edit(places=places, config=ranked(self.config, {a: 4, b: 1}))
        return state, Edit()

    def settled(self, step, steps):
        return True


@dataclasses.dataclass(frozen=True)
class Room:
    """The same in tensors of four directions, by masks."""

    config: object

    def _masks(self, pools, *there):
        out = {}
        for s, t in zip(SITES, there):
            m = torch.tensor([float(i in t) for i in range(4)])
            out |= {f"{s}.A": m[:, None].expand_as(pools[f"{s}.A"]), f"{s}.B": m.expand_as(pools[f"{s}.B"])}
        return out

    def begin(self, plan, pools, steps):
        return {}, Edit(masks=self._masks(pools, (0, 1), (0, 1)))

    def after(self, at, state):
        a = SITES[0]
        if at.step == 2:
            return state, Edit(
                values={f"{a}.A": torch.cat([at.pools[f"{a}.A"][:2], NEW])},
                masks=self._masks(at.pools, range(4), (0, 1)),
            )
        masks = self._masks(at.pools, range(4), (1,)) if at.step == 4 else {}
        return state, Edit(masks=masks, moments=masks)

    def settled(self, step, steps):
        return True


MAKERS = {
    "adamw": lambda g: torch.optim.AdamW(g, weight_decay=0.1),
    "fused": lambda g: torch.optim.AdamW(g, weight_decay=0.1, fused=True),
    "muon": lambda g: optimizers._muon(g, 0.0),
    "sgd": lambda g: torch.optim.SGD(g, momentum=0.9),
}


def run(room, make_optimizer, steps=6, rates=False, prepare=lambda host: None):
    model, _ = make("llama")
    host = cw.Host(model, sites="*.q_proj")
    prepare(host)
    tenant = host.add("t", "lora", rank=2, ranks=[["*", 4]] if room else [], alphas=[["*", 8 if room else 4]])
    with torch.no_grad():
        g = torch.Generator().manual_seed(1)
        for s in SITES:
            for k in "AB":
                pool, drawn = tenant.pools[f"{s}.{k}"], torch.randn(2, 32, generator=g)
                pool.zero_()
                (pool[:2] if k == "A" else pool[:, :2].T).copy_(0.1 * drawn)
    way = (Room if room else Resizes)(tenant.config)
    tenant.method = dataclasses.replace(tenant.method, schedule=lambda config, plan: way)
    optimizer = make_optimizer(alone(tenant.param_groups(0.05)))
    pace = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / 10) if rates else None
    at = Scheduled(tenant, optimizer, pace, steps)
    at.begin()
    ids, moved = torch.arange(5, 17).view(2, 6), []
    for step in range(1, steps + 1):
        with host.route("t"):
            loss = model(ids, labels=ids).loss
            loss.backward()
        at.masked()
        optimizer.step()
        moved.append(at.after(step))
        if pace is not None:
            pace.step()
        optimizer.zero_grad()
    return host, tenant, optimizer, moved, loss.item()


@pytest.mark.parametrize("name", MAKERS)
def test_a_resized_run_is_that_with_room(name):
    host, small, optimizer, moved, loss = run(False, MAKERS[name])
    _, large, other, never, same = run(True, MAKERS[name])
    assert moved == [False, True, False, True, False, False] and not any(never)
    assert loss == pytest.approx(same, rel=1e-5)
    near = {"rtol": 1e-2, "atol": 1e-3} if name == "muon" else {"rtol": 1e-4, "atol": 1e-6}  # it works in bfloat16
    for s, at in zip(SITES, (slice(0, 4), slice(1, 2))):
        for k in "AB":
            mine, whole = small.pools[f"{s}.{k}"], large.pools[f"{s}.{k}"]
            assert mine.is_contiguous() and mine.requires_grad
            part = [whole] + [v for v in other.state.get(whole).values() if v.shape == whole.shape]
            held = [mine] + [v for v in optimizer.state.get(mine).values() if v.shape == mine.shape]
            assert len(part) == len(held) > 1
            for a, b in zip(held, part):
                torch.testing.assert_close(a, b[at] if k == "A" else b[:, at], **near)
            steps = [o.state.get(p).get("step") for o, p in ((optimizer, mine), (other, whole))]
            assert steps[0] == steps[1]
    assert small.count() == 2 * 5 * 32 and host.merged("t")[f"{SITES[0]}.weight"].isfinite().all()
    assert sum(len(g["params"]) for g in optimizer.param_groups) == 4


def test_others_answer_as_before():
    """In one batch with it, alone, and by the numbers that they have."""
    asked = {}

    def prepare(host):
        stir(host.add("other", "lora", rank=2))
        asked["before"] = tell(host, "other")

    def tell(host, reader):
        _, inputs = make("llama")
        with torch.no_grad(), host.route(reader):
            return answer(host.model, inputs)

    host, tenant, *_ = run(False, MAKERS["adamw"], prepare=prepare)
    assert torch.equal(tell(host, "other"), asked["before"])
    rows = len(asked["before"])
    mixed = tell(host, [("t", "other", None)[i % 3] for i in range(rows)])
    for i, reader in enumerate(("t", "other", None)[:rows]):
        torch.testing.assert_close(mixed[i], tell(host, reader)[i], rtol=1e-4, atol=1e-5)
    assert host["t"] is tenant and tenant.number == 1


def test_a_pool_that_goes_takes_its_group_with_it():
    @dataclasses.dataclass(frozen=True)
    class Loses(Resizes):
        def after(self, at, state):
            edit = Edit(config=replace(self.config, ranks=((SITES[0], 0), (SITES[1], 2)))) if at.step == 1 else Edit()
            return state, edit

    config = cw.methods.resolve("alora", {"rank": 2})[1]
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = host.add("t", config)
    tenant.method = dataclasses.replace(tenant.method, schedule=lambda config, plan: Loses(config))
    optimizer = torch.optim.AdamW(alone(tenant.param_groups(0.1)))
    rates = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / 4)
    at, module = Scheduled(tenant, optimizer, rates, 4), host.module("t")
    at.begin()
    ids = torch.arange(5, 17).view(2, 6)
    for step in range(1, 4):
        module(ids, labels=ids).loss.backward()
        optimizer.step()
        if at.after(step):
            with pytest.raises(CommonweightError, match=r"its schedule gave the tenant other pools: module.renew\(\)"):
                module(ids)
            module.renew()
        rates.step()
        optimizer.zero_grad()
    assert len(optimizer.param_groups) == 2 == len(rates.base_lrs) and optimizer.param_groups[0]["lr"] == 0.1 / 4
    assert tenant.count() == 2 * 64 and [u.site for u in tenant.plan.uses] == SITES[1:]
    with pytest.raises(CommonweightError, match=r"alora: its schedule's new plan trains .*\.0\..*A, which the old one"):
        at._do(Edit(config=config))
    assert at.reshape(config) and tenant.count() == 4 * 64  # where the best state had it


def held(rows, places, **state):
    """An optimizer's tensors of a pool (rows, 3) once it has other rows."""
    old = torch.nn.Parameter(torch.ones(rows, 3))
    new = torch.nn.Parameter(torch.full((len(places), 3), 5.0))
    optimizer = torch.optim.SGD([old], lr=0.1)
    optimizer.state[old] = state
    follow(optimizer, None, old, new, (torch.tensor(places), None), "lora")
    assert optimizer.param_groups[0]["params"][0] is new and old not in optimizer.state
    return optimizer.state[new]


def test_what_other_optimizers_hold():
    got = held(1, [0, -1], row_var=torch.full((1, 1), 2.0), col_var=torch.full((1, 3), 3.0), step=torch.tensor(4.0))
    assert got["row_var"].tolist() == [[2.0], [0.0]] and got["col_var"].tolist() == [[3.0] * 3] and got["step"] == 4
    got = held(2, [1, -1], z=torch.arange(6.0).view(2, 3), exp_avg_sq=torch.ones(2, 3))
    assert got["z"].tolist() == [[3.0, 4.0, 5.0], [5.0] * 3], "a schedule-free optimizer's own point begins at the pool"
    assert got["exp_avg_sq"].tolist() == [[1.0] * 3, [0.0] * 3]
    blocks = {"state1": torch.zeros(2, 3, dtype=torch.uint8), "absmax1": torch.zeros(1)}
    with pytest.raises(CommonweightError, match=r"lora gives its pools other shapes .* holds state1 .* take adamw"):
        held(2, [1, -1], **blocks)


def wrong(edit, **more):
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = host.add("t", "lora", rank=2, **more)
    way = Resizes(tenant.config)
    at = Scheduled(tenant, torch.optim.AdamW(alone(tenant.param_groups(0.1))), None, 2, way)
    at._do(edit(tenant.config))


def test_plans_that_do_not_fit():
    three = dict.fromkeys(SITES, 3)
    with pytest.raises(CommonweightError, match=r"\.A is \(3, 32\) in its schedule's new plan, and \(2, 32\) by its"):
        wrong(lambda c: Edit(config=ranked(c, three)))
    short = {f"{s}.{k}": (torch.arange(2), None) for s in SITES for k in "AB"}
    with pytest.raises(CommonweightError, match=r"and \(2, 32\) by its places; it was \(2, 32\)"):
        wrong(lambda c: Edit(config=ranked(c, three), places=short))
    host = cw.Host(make("llama")[0])
    tenant = host.add("t", "lora", rank=2, sites="*.q_proj")
    told = dataclasses.make_dataclass("Silent", [], bases=(Room,), frozen=True)(tenant.config)
    at = Scheduled(tenant, torch.optim.AdamW(alone(tenant.param_groups(0.1))), None, 2, told)
    with pytest.raises(CommonweightError, match="does not say that it does: resizes = True in its class"):
        at._do(Edit(config=tenant.config))


# -- runs of adapt ----------------------------------------------------------------------------------------------------


def pools_of(result):
    return {n: p.detach().clone() for n, p in result.tenant.pools.items()}


def killed(bert, tmp_path, at, train):
    """What `train(host, **more)` gives where it was killed after these steps, and then resumed."""

    def stop(p):
        if p.step == at:
            raise KeyboardInterrupt

    how = {"checkpoint": tmp_path / f"{at}", "checkpoint_every": 2}
    with pytest.raises(KeyboardInterrupt):
        train(open_host(bert, dtype="float32"), **how, progress=stop)
    return train(open_host(bert, dtype="float32"), **how, resume=True)


@pytest.mark.parametrize("method", ["triadaptlora", "alora"])
def test_the_best_state_may_have_had_another_shape(bert, tmp_path, monkeypatch, method):
    """The first look at the dev rows is the best one, after some of the times that ranks change, and before others."""
    seen = Best.see
    monkeypatch.setattr(
        Best, "see", lambda s, m, b, c=(): seen(s, {b[0]: float(s.score is None) * (1, -1)[not b[1]]}, b, c)
    )
    schedule = type(cw.methods.get(method).scheduled(cw.methods.resolve(method, {})[1], cw.Plan({}, ())))
    monkeypatch.setattr(schedule, "settled", lambda *_: True)
    options = {
        "triadaptlora": {"target": 4, "block": 1, "end": 0.1},
        "alora": {"rank": 2, "rounds": 2, "begin": 0.2, "between": 0.4, "move": 0.2},
    }[method]

    def train(host, **more):
        return adapt(
            host, "t", tiny.rows(24), method=method, options=options, batch_size=4, epochs=2, lr=5e-3,
            dev_rows=tiny.rows(8, seed=1), sites="*query|*value", patience=9, **more,
        )  # fmt: skip

    ranks = []
    host = open_host(bert, dtype="float32")
    whole = train(host, progress=lambda p: ranks.append(host["t"].config.ranks))
    assert whole.tenant.config.ranks == ranks[5] != ranks[-1] and len({*ranks[:6]}) > 1
    for at in (3, 9):
        again = killed(bert, tmp_path, at, train)
        assert again.tenant.config == whole.tenant.config and again.tenant.plan == whole.tenant.plan
        a, b = pools_of(whole), pools_of(again)
        assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_two_that_grow_together(bert, tmp_path):
    """In mixed batches, with steps of two batches; each has its own ranks."""
    data = {n: Data(rows=tiny.rows(16, seed=i)) for i, n in enumerate("ab")}
    how = {"method": "increlora", "options": {"target": 2, "end": 0.2}, "batch_size": 4, "epochs": 2, "lr": 5e-3}

    def train(host, **more):
        return adapt_together(host, data, accumulate=2, sites="*query|*value", **how, **more)

    host = open_host(bert, dtype="float32")
    whole = train(host)
    assert all(sum(r for _, r in whole[n].tenant.config.ranks) == 8 for n in "ab")
    again = killed(bert, tmp_path, 5, train)
    for n in "ab":
        a, b = pools_of(whole[n]), pools_of(again[n])
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    with torch.no_grad():
        ids = torch.randint(5, 40, (3, 7), generator=torch.Generator().manual_seed(0))
        with host.route(["a", "b", None]):
            mixed = host.model.encoder(ids)[0]
        for i, reader in enumerate("ab"):
            with host.route(reader):
                torch.testing.assert_close(mixed[i], host.model.encoder(ids)[0][i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["increlora", "triadaptlora", "alora", "apt", "light-peft"])
def test_nothing_holds_what_is_not_there(bert, tmp_path, method):
    """While it trains, at the end, and in the file; a run that ended and was killed before its file is the same."""
    options = small(method) | ({"target": 3} if "target" in small(method) else {})
    host, how = open_host(bert, dtype="float32"), {"method": method, "options": options, "batch_size": 4, "epochs": 2}
    sizes = []

    def look(p):
        sizes.append(host["t"].count())
        held = {n: q for n, q in host["t"].pools.items() if n.rpartition(".")[2] in "ABd"}
        assert all(q.abs().sum(1 if n[-1] == "A" else 0).all() for n, q in held.items() if n[-1] == "A")

    result = adapt(host, "t", tiny.rows(24), progress=look, checkpoint=tmp_path / "c", **how)
    tenant = result.tenant
    plan = cw.plan(tenant.config, tenant.sites)
    assert len({*sizes}) > 1 or method == "alora"
    assert tenant.count() == sizes[-1]
    assert tenant.plan.pools.items() >= plan.pools.items() and tenant.nbytes == tenant.plan.nbytes
    file = host.save("t", tmp_path / "t.cw")
    assert tenant.nbytes < file.stat().st_size < tenant.nbytes + 16384
    again = adapt(open_host(bert, dtype="float32"), "t", tiny.rows(24), checkpoint=tmp_path / "c", resume=True, **how)
    a, b = pools_of(result), pools_of(again)
    assert a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


def test_what_it_does_not_go_with(bert):
    host = open_host(bert, dtype="float32")
    with pytest.raises(CommonweightError, match="compile does not go together with a schedule that gives pools other"):
        adapt(host, "t", tiny.rows(8), method="apt", options=small("apt"), compile=True)
    with pytest.raises(CommonweightError, match="blocks of 8 bits, and apt gives its pools other shapes"):
        adapt(host, "t", tiny.rows(8), method="apt", options=small("apt"), optimizer="adamw-8bit")
    tenant = host.add("v", "sharelora", rank=2, common="all")
    with pytest.raises(CommonweightError, match="'v' is in the common 'all', whose pools others read in their shape"):
        become(tenant, tenant.config, tenant.plan, {})


def test_a_route_that_is_open_around_the_loop():
    """It had kept what it worked out of the old plan; that tenant trained no more."""

    def losses(around):
        host = cw.Host(make("llama")[0], sites="*.q_proj")
        tenant = stir(host.add("t", "lora", rank=2))
        stir(host.add("u", "lora", rank=2), 2)
        tenant.method = replace(tenant.method, schedule=lambda c, _: Resizes(c))
        optimizer = torch.optim.AdamW(alone(tenant.param_groups(0.05)))
        at, ids, out = Scheduled(tenant, optimizer, None, 5), torch.arange(5, 29).view(4, 6), []
        at.begin()
        with host.route(["t", "u", "t", None]) if around else nullcontext():
            for i in range(1, 6):
                with nullcontext() if around else host.route(["t", "u", "t", None]):
                    loss = host.model(ids, labels=ids).loss
                    loss.backward()
                at.masked()
                optimizer.step()
                at.after(i)
                optimizer.zero_grad()
                out.append(loss.item())
        return out

    assert losses(True) == losses(False)


def test_a_checkpoint_of_before_plans_could_change(bert, tmp_path):
    def train(host, **more):
        return adapt(host, "t", tiny.rows(32), method="sora", options={"rank": 2}, batch_size=8, epochs=2, **more)

    want, folder = pools_of(train(open_host(bert, dtype="float32"))), tmp_path / "4"
    write = Store.write

    def older(self, step, state, checkpoint):
        schedules = [{k: v for k, v in s.items() if k != "config"} for s in checkpoint.facts["schedules"]]
        write(self, step, state, replace(checkpoint, facts={**checkpoint.facts, "schedules": schedules}))

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Store, "write", older)
        got = killed(bert, tmp_path, 4, train)
    assert folder.parent == tmp_path and pools_of(got).keys() == want.keys()
    for n, p in pools_of(got).items():
        assert torch.equal(p, want[n])
