"""FISH mask: its statistics against autograd row by row, its entries against a sort of all of them."""

import pytest
import torch

import commonweight as cw
from tests.models import make

SMALL = {"start": "random", "ratio": 0.02}


def rows(n=5, seed=3):
    g = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, 40, (n, 6), generator=g)
    return {"input_ids": ids, "labels": ids}


def part(batch, first, end):
    return {k: v[first:end] for k, v in batch.items()}


def test_the_largest_squared_gradients_of_all_sites():
    model, _ = make("llama")
    host = cw.Host(model, sites="*.q_proj|*.down_proj")
    batch = rows()
    tenant = host.add("t", "fish", ratio=0.03, rows=[part(batch, 0, 2), part(batch, 2, 5)])
    weights = {s.name: model.get_submodule(s.name).weight for s in host.sites}
    sums = {n: torch.zeros_like(w) for n, w in weights.items()}
    for w in weights.values():
        w.requires_grad_(True)
    for i in range(5):
        loss = model(input_ids=batch["input_ids"][i : i + 1], labels=batch["labels"][i : i + 1]).loss
        for total, g in zip(sums.values(), torch.autograd.grad(loss, list(weights.values()))):
            total += g**2
    for w in weights.values():
        w.requires_grad_(False)
    every = torch.cat([s.flatten() for s in sums.values()])
    least = every.sort(descending=True).values[int(0.03 * len(every)) - 1]
    for n, total in sums.items():
        places = tenant.pools[f"{n}.places"].long() if f"{n}.places" in tenant.pools else torch.tensor([]).long()
        assert sorted(places.tolist()) == (total.flatten() >= least).nonzero()[:, 0].tolist()
    assert tenant.count() == int(0.03 * len(every))
    assert [*host] == ["t"], "nothing is left of the tenant that the statistics were taken with"


def test_it_is_the_weight_with_other_entries(tmp_path):
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = host.add("t", "fish", ratio=0.05, rows=[rows()])
    name = next(n for n in tenant.pools if n.endswith(".v")).removesuffix(".v")
    with torch.no_grad():
        tenant.pools[f"{name}.v"].fill_(0.5)
    want = host.weight(name).flatten().clone()
    want[tenant.pools[f"{name}.places"].long()] += 0.5
    assert torch.equal(host.merged("t")[f"{name}.weight"].flatten(), want)
    host.save("t", tmp_path / "t.cw")
    again = cw.Host(make("llama")[0], sites="*.q_proj").load("t", tmp_path / "t.cw")
    assert all(torch.equal(again.pools[n], p) for n, p in tenant.pools.items())


@pytest.mark.parametrize(
    "options, says",
    [
        ({}, "fish begins from data: the sum over rows of the squared gradient .* give rows="),
        ({"rows": []}, "no rows to take statistics of"),
        ({"rows": [{"input_ids": torch.ones(1, 3).long()}]}, 'give them "labels"'),
        ({"start": "random", "rows": [rows()]}, "fish with start='random' does not begin from data; leave rows out"),
        ({"start": "given"}, "0 kept sites"),
    ],
)
def test_what_is_asked_for(options, says):
    host = cw.Host(make("llama")[0])
    with pytest.raises(cw.CommonweightError, match=says):
        host.add("t", "fish", **options)
    assert not [*host]


def test_an_experts_entries():
    """Of fused experts, (experts, out, inp) in one parameter."""
    model, _ = make("moe")
    host = cw.Host(model, sites="*.experts.*")
    given = part(rows(), 0, 1)
    tenant = host.add("t", "fish", ratio=0.05, rows=[given])
    weights = {n: p.requires_grad_(True) for n, p in model.named_parameters() if ".experts." in n}
    grads = dict(zip(weights, torch.autograd.grad(model(**given).loss, list(weights.values()))))
    every = torch.cat([(g**2).flatten() for g in grads.values()])
    least = every.sort(descending=True).values[int(0.05 * len(every)) - 1]
    for n, g in grads.items():
        for e in range(len(g)):
            at = tenant.pools.get(f"{n}[{e}].places")
            got = [] if at is None else sorted(at.tolist())
            assert got == (g[e].flatten() ** 2 >= least).nonzero()[:, 0].tolist()
