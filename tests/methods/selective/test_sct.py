"""SCT: scores of channels written out a second time, and what the chosen ones do."""

import pytest
import torch

import commonweight as cw
from commonweight.methods import Shown
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"start": "random", "ratio": 0.2}


def test_channels_are_scored_by_class():
    model, _ = make("bert")
    host = cw.Host(model, sites="*.query|*.value")
    g = torch.Generator().manual_seed(3)
    ids, labels = torch.randint(5, 40, (6, 7), generator=g), torch.tensor([0, 1, 0, 2, 0, 0])
    mask = torch.ones(6, 7, dtype=torch.int64)
    mask[1, 4:] = mask[4, 2:] = 0
    batch, seen = {"input_ids": ids, "attention_mask": mask}, {}
    hooks = [
        model.get_submodule(s.name).register_forward_hook(lambda m, a, y, n=s.name: seen.__setitem__(n, y))
        for s in host.sites
    ]
    with torch.no_grad():
        model(**batch)
    for h in hooks:
        h.remove()
    batches = [{k: v[i : i + 4] for k, v in {**batch, "labels": labels}.items()} for i in (0, 4)]
    run = lambda model, b: model(input_ids=b["input_ids"], attention_mask=b["attention_mask"])  # noqa: E731
    tenant = host.add("t", "sct", ratio=0.25, rows=Shown(batches, run))
    for n, y in seen.items():
        norms = []
        for c in range(3):
            tokens = torch.cat([y[i][mask[i].bool()] for i in range(6) if labels[i] == c])
            norms.append(tokens.square().sum(0).sqrt())
        score = sum(norms) / 3
        k = round(0.25 * y.shape[-1])
        assert sorted(score.topk(k).indices.tolist()) == tenant.pools[f"{n}.at"].tolist()


@pytest.mark.parametrize("kind, m", [("bert", True), ("llama", False)])
def test_formula(kind, m, tmp_path):
    model, batch = make(kind)
    host = cw.Host(model)
    tenant = stir(host.add("t", "sct", start="random", ratio=0.2))
    site = tenant.plan.uses[0].site
    at, M = tenant.pools[f"{site}.at"].long(), tenant.pools[f"{site}.M"].detach()
    y = []
    handle = model.get_submodule(site).register_forward_hook(lambda mod, a, out: y.append(out))
    with torch.no_grad():
        model(**batch)
        with host.route("t"):
            model(**batch)
    handle.remove()
    want = y[0].clone()
    want[..., at] += y[0][..., at] @ M.T + (tenant.pools[f"{site}.m"].detach() if m else 0)
    torch.testing.assert_close(y[1], want)
    assert (f"{site}.m" in tenant.pools) == m
