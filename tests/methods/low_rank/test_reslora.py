"""ResLoRA: a layer's weight has the updates of the layers before it."""

from functools import partial

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 3}
VARIANTS = [{"previous": None}, {"shortcut": "input"}, {"shortcut": "middle"}]


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
