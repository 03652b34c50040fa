"""A run that is small enough for a test: a host, rows, and what both sides know."""

from __future__ import annotations

import torch

import commonweight as cw
from commonweight.adapt import open_host
from commonweight.exchange import methods
from commonweight.exchange.local import Local, Rounds
from commonweight.exchange.message import of_client, pack
from commonweight.exchange.rounds import Gathering, facts, starting
from commonweight.exchange.setting import by_client, make_task, ready
from commonweight.exchange.work import Work
from tests.adapt import tiny
from tests.laws import subjects

METHODS = sorted(methods.available())
SMALL = {
    "diloco": {"rank": 2, "steps": 4, "fragments": 2, "delay": 1, "alpha": 0.25, "bits": 4},
    "fedavg": {"rank": 2},
    "ffa-lora": {"rank": 4},
    "fed-sb": {"rank": 4},
    "fedpara": {"rank": 2},
    "pfedpara": {"rank": 2},
    "legend": {"rank": 4, "least": 2, "depths": (0.5, 1.0)},
    "coded": {"rank": 2, "codec": "int4"},
    "fish-mask": {"ratio": 0.02, "start": "random"},
    "flag": {"adapter": "ia3"},
    "frl": {"rank": 4},
    "median": {"rank": 2},
    "merged": {"rank": 2},
    "trimmed-mean": {"rank": 2, "trim": 0.34},
    "fedcac": {"rank": 2},
    "fedkseed": {"rank": 2, "seeds": 16, "steps": 3},
    "fedkseed-pro": {"rank": 2, "seeds": 16, "steps": 3},
    "ferret": {"rank": 2, "seeds": 4},
    "mezo": {"rank": 2, "directions": 2},
    "one-byte": {"rank": 2, "directions": 2},
    "submodel": {"rank": 2, "share": 0.4},
}


def prepared(model, method="fedavg", options=None, *, clients=3, **recipe):
    """A `Prepared` run on a model of its own."""
    host = open_host(model, dtype="float32")
    plan = Rounds(clients=clients, **{k: v for k, v in recipe.items() if k in Rounds.__dataclass_fields__})
    local = Local(**{k: v for k, v in recipe.items() if k in Local.__dataclass_fields__})
    task = make_task(host, "classify", tiny.rows(), None, None, local, {}, "rows")
    options = SMALL.get(method, {}) if options is None else options
    return ready(host, task, method, options, plan, local, clients=clients)


def work(p, sizes=(9, 5, 14), mixed=256, seed=0):
    """A `Work` whose clients have so many rows."""
    rows = tiny.rows(sum(sizes), seed)
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    each = by_client(p.task, rows, [list(range(b - n, b)) for b, n in zip(ends, sizes)])
    return Work(p.host, p.tenant, p.task, each, p.local, p.setting.rounds, p.setting.seed, mixed)


def start(p):
    return starting(p.setting, p.tenant.pools)


def moved(pools, seed=0, std=0.1):
    """Other numbers of the same shapes."""
    g = torch.Generator().manual_seed(seed)
    return {n: p + std * torch.randn(p.shape, generator=g) for n, p in pools.items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


NOTHING = cw.Plan({}, ())


def adapters():
    """Those that a client can train, of an encoder."""
    every = cw.methods.available().items()
    found = (n for n, m in every if not (m.scheduled(m.config(), NOTHING) or m.penalty or m.router_loss(m.config())))
    found = (n for n in found if "state" not in cw.methods.get(n).kinds)  # which decoders alone have
    return sorted(n for n in found if subjects.model_of(n) != "moe")


def options(adapter):
    """At which it fits the model, without random numbers in training."""
    fields = cw.methods.get(adapter).config.__dataclass_fields__
    still = {k: v for k, v in {"noise": False, "dropout": 0.0}.items() if k in fields}
    found = {"tokens": (3, 4, 5)} if adapter == "tokens" else subjects.small(adapter)
    return {"adapter": adapter, **found, **still}


def prepared_host(model):
    return open_host(model, dtype="float32")


def values(run):
    """The global tenant's trained numbers."""
    return {n: p.detach().clone() for n, p in run.tenant.named_parameters()}


def is_left_out(p, state, good, bad, reason):
    """An answer that has the right shapes and no meaning is refused by name: the state is made of the other one, and
    does not change without it."""

    def after(*answers):
        inbox = Gathering(p.method, p.setting, 0, {0, 1}, {0: 3, 1: 9})
        for c, tensors in answers:
            about = of_client(facts(p.setting, 0), c, {0: 3, 1: 9}[c])
            inbox.put(pack(about, tensors, p.method.up(p.setting, 0, c)), c)
        return inbox.close(state), dict(inbox.inbox.refused)

    one, two, none = after((0, good)), after((0, good), (1, bad)), after((1, bad))
    assert same(one[0].tensors, two[0].tensors) and one[1] == {} and two[1] == none[1] == {reason: 1}
    assert same(none[0].tensors, state.tensors)


class Fresh:
    def __init__(self, tenant):
        self.tenant = tenant


def fresh(model, method):
    """As a run that has not begun."""
    return Fresh(prepared(model, method).tenant)


def changes(p, pools):
    """site -> what the tenant with these pools adds to the weight, of linear sites."""
    tenant = p.tenant
    with torch.no_grad():
        for n, v in pools.items():
            tenant.pools[n].copy_(v)
        out = {}
        for use in tenant.plan.uses:
            if getattr(use.bind, "weight", None) is None:
                continue
            slots = {k: r.address(*(tenant.pools[n] for n in r.pools)) for k, r in use.reads.items()}
            w = p.host.weight(use.site).double()
            out[use.site] = use.bind.weight(w, **{k: v.double() for k, v in slots.items()}) - w
    return out
