"""SparseAdapter: SNIP scores against autograd on the masks of a dense adapter, written out a second time."""

import pytest
import torch

import commonweight as cw
from tests.models import make

SMALL = {"start": "random", "size": 8, "keep": 0.3}
VARIANTS = [{"start": "dense"}, {"placement": "pfeiffer"}]
SITES = "*.o_proj|*.down_proj"


def rows():
    ids = torch.randint(5, 40, (4, 6), generator=torch.Generator().manual_seed(3))
    return {"input_ids": ids, "labels": ids}


def part(batch, first, end):
    return {k: v[first:end] for k, v in batch.items()}


@pytest.mark.parametrize("score", ["snip", "magnitude"])
def test_the_numbers_that_the_loss_would_feel(score):
    model, _ = make("llama")
    host = cw.Host(model, sites=SITES)
    dense = host.add("d", "sparse-adapter", start="dense", size=8, seed=4)
    matrices = {n: p.detach().clone() for n, p in dense.named_parameters() if not n.endswith("bias")}
    masks = {n: torch.ones_like(w).requires_grad_() for n, w in matrices.items()}
    adapters = {}
    for s in host.sites:

        def add(module, args, y, n=s.name):
            h = (y @ (matrices[f"{n}.down"] * masks[f"{n}.down"]).T).relu()
            return y + h @ (matrices[f"{n}.up"] * masks[f"{n}.up"]).T

        adapters[s.name] = model.get_submodule(s.name).register_forward_hook(add)
    grads = torch.autograd.grad(model(**rows()).loss, list(masks.values()))
    for h in adapters.values():
        h.remove()
    scores = {n: (g if score == "snip" else w).abs() for (n, w), g in zip(matrices.items(), grads)}
    every = torch.cat([v.flatten() for v in scores.values()]).sort(descending=True).values
    least = every[int(0.3 * len(every)) - 1] * (1 - 1e-5)
    host.remove("d")
    how = {"size": 8, "keep": 0.3, "score": score, "seed": 4}
    tenant = host.add("t", "sparse-adapter", rows=[part(rows(), 0, 2), part(rows(), 2, 4)], **how)
    differ = 0
    for n, v in scores.items():
        places = tenant.pools[f"{n}_places"].long()
        want = (v.flatten() >= least).nonzero()[:, 0]
        differ += len({*places.tolist()} ^ {*want.tolist()})
        torch.testing.assert_close(tenant.pools[n].detach(), matrices[n].flatten()[places])
    assert differ <= 2, "numbers on the edge alone"
    assert sum(k for _, k in tenant.config.kept) == int(0.3 * len(every)) and [*host] == ["t"]


@pytest.mark.parametrize("score", ["grasp", "synflow"])
def test_scores_that_look_at_two_matrices(score):
    """GraSP: w H g by differences of gradients in float64. SynFlow: the gradient of what an adapter of magnitudes makes
    of ones."""
    model, _ = make("llama")
    model.double()
    host = cw.Host(model, sites="*.layers.1.mlp.down_proj")
    dense = host.add("d", "sparse-adapter", start="dense", size=8, act="gelu", seed=4)
    named = {n: p for n, p in dense.named_parameters() if not n.endswith("bias")}
    matrices = {n: p.detach().clone() for n, p in named.items()}

    def gradient(shift=None, far=0.0):
        with torch.no_grad():
            for (n, p), w in zip(named.items(), matrices.values()):
                p.copy_(w + far * shift[n] if shift else w)
        with host.route("d"):
            return dict(zip(named, torch.autograd.grad(model(**rows()).loss, [*named.values()])))

    if score == "grasp":
        g = gradient()
        far = 1e-3 / max(float(v.abs().max()) for v in g.values())
        ahead, behind = gradient(g, far), gradient(g, -far)
        scores = {n: w * (ahead[n] - behind[n]) / (2 * far) for n, w in matrices.items()}
        assert any((v < 0).any() for v in scores.values())
    else:
        D, U = (w.abs().requires_grad_() for w in matrices.values())
        grads = torch.autograd.grad((U @ (D @ torch.ones(D.shape[1])).relu()).mean(), [D, U])
        scores = {n: (w.abs() * g) for (n, w), g in zip(matrices.items(), grads)}
    every = torch.cat([v.flatten() for v in scores.values()]).sort(descending=True).values
    least = every[int(0.3 * len(every)) - 1]
    host.remove("d")
    how = {"size": 8, "act": "gelu", "keep": 0.3, "score": score, "seed": 4}
    tenant = host.add("t", "sparse-adapter", rows=[part(rows(), 0, 2), part(rows(), 2, 4)], **how)
    differ = 0
    for n, v in scores.items():
        want = (v.flatten() >= least).nonzero()[:, 0]
        differ += len({*tenant.pools[f"{n}_places"].tolist()} ^ {*want.tolist()})
    assert differ <= 2 and [*host] == ["t"]


def test_a_matrix_keeps_one():
    from commonweight.methods.adapters.sparse_adapter import SparseAdapter, begin

    seen = {"a.down": torch.ones(2, 3), "a.up": torch.ones(3, 2)}
    seen |= {"a.down=": torch.arange(1.0, 7).view(2, 3), "a.up=": -0.1 * torch.arange(1.0, 7).view(3, 2)}
    config, values = begin(SparseAdapter(size=2, keep=0.25), [], seen)
    assert dict(config.kept) == {"a.down": 3, "a.up": 1}
    assert values["a.up_places"].tolist() == [5] and values["a.down_places"].tolist() == [3, 4, 5]
    assert values["a.down"].tolist() == [4, 5, 6]


def test_the_share_that_is_kept():
    sites = [cw.Site("o", 32, 32, role="attn_out"), cw.Site("down", 32, 64, role="down")]
    assert cw.plan("sparse-adapter", sites, start="random", size=10, keep=0.25).count() == 2 * (2 * 80 + 42)
    with pytest.raises(cw.CommonweightError, match="with 0 kept matrices"):
        cw.plan("sparse-adapter", sites, start="given")
