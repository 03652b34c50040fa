"""ResLoRA: a layer's weight has the updates of the layers before it."""

from functools import partial

import pytest
import torch

import commonweight as cw
from commonweight.methods.low_rank.reslora import estimated
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
VARIANTS = [
    {"previous": None},
    {"shortcut": "input"},
    {"shortcut": "middle"},
    {"shortcut": "middle", "previous": None},
]


@pytest.mark.parametrize("previous", [0, 1, None])
def test_formula(previous):
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "reslora", rank=3, alpha=6, previous=previous))
    merged = host.merged("t")
    for part in ("self_attn.q_proj", "mlp.down_proj"):
        names = [s.name for s in host.sites if s.name.endswith(part)]
        low = [2.0 * tenant.pools[f"{n}.B"].detach() @ tenant.pools[f"{n}.A"].detach() for n in names]
        for i, n in enumerate(names):
            first = 0 if previous is None else max(0, i - previous)
            torch.testing.assert_close(merged[f"{n}.weight"], host.weight(n) + sum(low[first : i + 1]))


def test_chains_end_where_shapes_differ():
    sites = [cw.Site(f"layers.{i}.q", out, 8) for i, out in enumerate((8, 8, 16, 16, 16))]
    plan = cw.plan("reslora", sites, rank=2, previous=None)
    assert plan.count() == 2 * (16 + 16 + 24 * 3) and len(plan.uses) == 3 + 6
    assert plan.readers()["layers.2.q.A"] == 3 and plan.readers()["layers.1.q.A"] == 1


@pytest.mark.parametrize("shortcut", ["input", "middle"])
def test_shortcuts_of_inputs_and_middles(shortcut):
    """Layer by layer on the model's own modules, each of which leaves what it was given to the next."""
    model, batch = make("llama")
    host = cw.Host(model, sites="*.q_proj|*.down_proj")
    tenant = stir(host.add("t", "reslora", rank=3, alpha=6, shortcut=shortcut))
    names = [s.name for s in host.sites]
    with torch.no_grad(), host.route("t"):
        ours = model(**batch).logits
    host.close()
    given = {}

    def add(n, module, args, y):
        x, (kind, i) = args[0], (n.rpartition(".")[2], [m for m in names if m.endswith(n.rpartition(".")[2])].index(n))
        A, B = (tenant.pools[f"{n}.{k}"].detach() for k in "AB")
        if shortcut == "input":
            low = (x + given.get(kind, x)) @ A.T
        else:
            low = x @ A.T
            if i:
                before = [m for m in names if m.endswith(kind)][i - 1]
                low = low + given[kind] @ tenant.pools[f"{before}.A"].detach().T
        given[kind] = x
        return y + 2.0 * low @ B.T

    for n in names:
        model.get_submodule(n).register_forward_hook(partial(add, n))
    with torch.no_grad():
        torch.testing.assert_close(ours, model(**batch).logits, rtol=1e-4, atol=1e-5)


def test_what_cannot_be():
    with pytest.raises(
        cw.CommonweightError, match="previous=2 with shortcut='input', which reads the one layer before"
    ):
        cw.plan("reslora", [cw.Site("q", 8, 8)], shortcut="input", previous=2)
    with pytest.raises(cw.CommonweightError, match="previous=0 with shortcut='middle', which is a LoRA"):
        cw.plan("reslora", [cw.Site("q", 8, 8)], shortcut="middle", previous=0)


class Deep(torch.nn.Module):
    """Four layers with a projection of a chain each."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.ModuleList(torch.nn.ModuleDict({"q": torch.nn.Linear(6, 6)}) for _ in range(4))

    def forward(self, x):
        for layer in self.layers:
            x = x + torch.tanh(layer["q"](x))
        return x


@torch.no_grad()
@pytest.mark.parametrize("previous", [1, 2, None])
def test_middles_of_several_layers(previous):
    host, x = cw.Host(Deep(), sites="*"), torch.randn(5, 3, 6)
    tenants = {
        name: stir(host.add(name, "reslora", rank=2, alpha=4, shortcut="middle", previous=m), i, std=0.5)
        for i, (name, m) in enumerate({"t": previous, "one": 1}.items())
    }
    stir(host.add("input", "reslora", rank=2, alpha=4, shortcut="input"), 7, std=0.5)

    def by_hand(row, tenant, m):
        given = []
        for i, layer in enumerate(host.model.layers):
            given.append(row)
            A, B = ([tenant.pools[f"layers.{j}.q.{k}"] for j in range(i + 1)] for k in "AB")
            first = 0 if m is None else max(0, i - m)
            low = sum(given[j] @ A[j].T for j in range(first, i + 1))
            row = row + torch.tanh(torch.nn.functional.linear(row, *layer["q"].parameters()) + 2.0 * low @ B[i].T)
        return row

    with host.route("t"):
        torch.testing.assert_close(host.model(x), by_hand(x, tenants["t"], previous))
    readers = ["t", "one", "input", None, "t"]
    with host.route(readers):
        mixed = host.model(x)
    for i, name in enumerate(readers):
        with host.route(name):
            torch.testing.assert_close(mixed[i : i + 1], host.model(x[i : i + 1]))
    assert not host.base.current.thread.given_to, "nothing is kept behind the pass"


@pytest.mark.parametrize(
    "shortcut, seen, previous", [("input", 0, 1), ("input", 1, 1), ("middle", 1, 1), ("middle", 1, 2)]
)
def test_an_estimate_that_merges(shortcut, seen, previous):
    torch.manual_seed(0)
    blocks = [torch.nn.ModuleDict({"q": torch.nn.Linear(6, 6), "down": torch.nn.Linear(9, 6)}) for _ in range(4)]
    host = cw.Host(torch.nn.Sequential(*blocks), sites="*")
    tenant = stir(host.add("t", "reslora", rank=3, alpha=6, shortcut=shortcut, previous=previous))
    norms = {s.name: 1.0 + i for i, s in enumerate(host.sites)} if seen else None
    base = {s.name: host.weight(s.name).clone() for s in host.sites}
    estimated(host, "t", "lora", norms)
    merged = host.merged("lora")
    for part in ("q", "down"):
        names = [n for n in base if n.endswith(part)]
        low = [2.0 * tenant.pools[f"{n}.B"].detach() @ tenant.pools[f"{n}.A"].detach() for n in names]
        f = [norms[n] if norms else float((base[n] + d).norm()) for n, d in zip(names, low)]
        for i, n in enumerate(names):
            if norms:
                a = sum(f[max(0, i - previous) : i]) / f[i] if i else float(shortcut == "input")
            else:
                a = f[i - 2] / f[i - 1] if i > 1 else 1.0
            torch.testing.assert_close(merged[f"{n}.weight"], base[n] + (1 + a) * low[i])
    assert all(torch.equal(host.weight(n), w) for n, w in base.items())


def test_the_released_estimate_writes_into_the_frozen_weight():
    """Its sum begins as the weight itself, and is of A^T B^T: of a layer that is not square it stops."""

    def official(weight, A, B):
        total = weight
        total += A.T @ B.T
        return total.norm()

    weight, A, B = torch.randn(4, 4), torch.randn(2, 4), torch.randn(4, 2)
    before = weight.clone()
    official(weight, A, B)
    torch.testing.assert_close(weight, before + (B @ A).T)
    with pytest.raises(RuntimeError):
        official(torch.randn(6, 4), A, torch.randn(6, 2))


def test_what_has_no_estimate():
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    host.add("block", "reslora", rank=2)
    host.add("middle", "reslora", rank=2, shortcut="middle")
    with pytest.raises(cw.CommonweightError, match="other tenants merge as they are"):
        estimated(host, "block", "new")
    with pytest.raises(cw.CommonweightError, match="by norms of A x; give norms="):
        estimated(host, "middle", "new")
