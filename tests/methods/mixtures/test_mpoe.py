"""MPOE against its formula, number by number, and an exact train of a matrix."""

import math
from itertools import product

import torch

import commonweight as cw
from commonweight.methods.mixtures.mpoe import matrices, split
from tests.laws.subjects import stir
from tests.models import make

from .tokens import largest

SMALL = {"bond": 2, "experts": 3}
SOFT = {**SMALL, "active": 3}


def test_formula():
    model, batch = make("qwen")
    host, seen = cw.Host(model, sites="*.q_proj"), {}
    t = stir(host.add("t", "mpoe", bond=3, experts=3, active=2, scale=0.5), std=0.5)
    name = host.sites[0].name
    layer = model.get_submodule(name)
    layer.register_forward_hook(lambda m, args, y: seen.update(x=args[0].detach(), y=y.detach()))
    with torch.no_grad(), host.route("t"):
        model(**batch)
    x = seen["x"]
    got = seen["y"] - torch.nn.functional.linear(x, layer.get_parameter("weight"), layer.get_parameter("bias"))
    p = {k.rpartition(".")[2]: v.detach() for k, v in t.pools.items() if k.startswith(f"{name}.")}
    outs, ins = split(got.shape[-1]), split(x.shape[-1])
    W = torch.zeros(3, got.shape[-1], x.shape[-1])
    for e in range(3):
        cores = [p[f"T{n}"] if n == 2 else p[f"T{n}"][e] for n in range(5)]
        for a, i in enumerate(product(*map(range, outs))):
            for b, j in enumerate(product(*map(range, ins))):
                row = torch.ones(1, 1)
                for c, u, v in zip(cores, i, j):
                    row = row @ c[:, u, v]
                W[e, a, b] = row[0, 0]
    g = torch.tensor([[largest((p["router"] @ v).softmax(-1), 2) for v in row] for row in x])
    want = 0.5 * torch.einsum("bte,eod,btd->bto", g, W, x)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert want.abs().max() > 0.01


def test_a_matrix_without_a_cut():
    """Successive SVDs give cores whose train is the matrix itself."""
    w = torch.randn(24, 36, generator=torch.Generator().manual_seed(0))
    outs, ins = split(24), split(36)
    t = w.reshape(*outs, *ins).permute(*[k + 5 * n for k in range(5) for n in (0, 1)])
    cores, bond = [], 1
    for i, j in zip(outs[:-1], ins[:-1]):
        u, s, v = torch.linalg.svd(t.reshape(bond * i * j, -1), full_matrices=False)
        cores.append(u.reshape(bond, i, j, len(s)))
        t, bond = s[:, None] * v, len(s)
    cores.append(t.reshape(bond, outs[-1], ins[-1], 1))
    got = matrices([cores[0][None], *cores[1:]])[0]
    torch.testing.assert_close(got, w, rtol=1e-4, atol=1e-4)


def test_widths_as_five_factors():
    assert split(768) in {(3, 4, 4, 4, 4), (4, 4, 4, 4, 3)} and sorted(split(3072)) == [4, 4, 4, 6, 8]
    for n in (1, 7, 30, 384, 1536, 4096, 14336):
        assert math.prod(split(n)) == n and split(n)[2] == max(split(n))


def test_count():
    """The central core once, the others and a row of the router for each expert."""
    plan = cw.plan("mpoe", [cw.Site("q", 1024, 1024)], bond=8, experts=4)
    i = split(1024)
    bonds = [1, 8, 8, 8, 8, 1]
    each = [bonds[k] * i[k] ** 2 * bonds[k + 1] for k in range(5)]
    assert plan.count() == each[2] + 4 * (sum(each) - each[2] + 1024)


def test_the_code_drops_the_second_expert_by_chance_in_evaluation_too():
    """mixture_of_experts.py @66f64e8: the second expert stays with probability min(1, g2 / .2), g1 and g2 over their
    sum. Ours always keeps it, with the gates that the code has where it stays."""
    from commonweight.methods.mixtures.mpoe import Trains

    g = torch.Generator().manual_seed(0)
    z = torch.tensor([3.0, 1.2, -2.0])
    p = z.softmax(-1)
    g1, g2 = float(p[0] / (p[0] + p[1] + 1e-9)), float(p[1] / (p[0] + p[1] + 1e-9))
    assert g2 < 0.2
    drawn = {(g1, g2 if float(torch.rand((), generator=g)) < g2 / 0.2 else 0.0, 0.0) for _ in range(40)}
    assert drawn == {(g1, g2, 0.0), (g1, 0.0, 0.0)}
    found = []
    for e in [0, 1, 2, 0, 1, 2]:  # one number wide: of all experts' matrices one is 1
        one = torch.nn.functional.one_hot(torch.tensor(e), 3).float().view(3, 1, 1, 1, 1)
        cores = {f"T{n}": torch.ones((1, 1, 1, 1) if n == 2 else (3, 1, 1, 1, 1)) for n in range(5)}
        at = torch.ones(1, 1), torch.zeros(1, 1), object()
        found.append(float(Trains(2, 1.0).output(*at, router=z[:, None], **{**cores, "T0": one})))  # type: ignore
    torch.testing.assert_close(torch.tensor(found), torch.tensor([g1, g2, 0.0] * 2))
