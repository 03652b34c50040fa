"""TriAdaptLoRA: the growth of C, and that it changes no answer but by the scale."""

import pytest
import torch

import commonweight as cw
from commonweight.core.schedule import Moment, carried
from commonweight.methods.low_rank.triadaptlora import Blocks, TriAdaptLoRA
from tests.models import make

SMALL = {"target": 2, "start": 1, "block": 1}
VARIANTS = [{"pace": "exponential"}, {"ranks": [["*q_proj", 1], ["*", 2]]}]


def test_the_sites_whose_c_grows_get_blocks():
    config = TriAdaptLoRA(target=3, block=2, begin=0.1, end=0.5)
    names = ("a", "b", "c")
    way = Blocks(config, names, 3)
    g = torch.Generator().manual_seed(0)
    # a matrix of 4 x 6 has rank 4 at most
    pools = {f"{n}.{k}": torch.randn(s, generator=g) for n in names for k, s in (("A", (1, 6)), ("B", (4, 1)))}
    pools |= {f"{n}.C": torch.randn(1, 1, generator=g) for n in names} | {f"{n}.gain": torch.ones(1) for n in names}
    state, edit = way.begin(None, pools, 20)
    ranks, blocks, last = [1] * 3, [1] * 3, [float(pools[f"{n}.C"].abs()) for n in names]
    for step in range(1, 12):
        pools |= {f"{n}.C": pools[f"{n}.C"] * (1 + 0.5 * torch.rand(1, generator=g)) for n in names}
        before = dict(pools)
        state, edit = way.after(Moment(step, 20, pools, {}, {}), state)
        pools = {**pools, **{n: carried(pools[n], p) for n, p in edit.places.items()}, **edit.values}
        if step > 2 and sum(ranks) < 9:
            norms = [float(before[f"{n}.C"].square().sum().sqrt()) / b for n, b in zip(names, blocks)]
            k = min(3, max(1, int((9 - sum(ranks)) * (step - 2) / 8)))
            for i in sorted(range(3), key=lambda i: last[i] - norms[i])[:k]:
                more = min(2, 4 - ranks[i], 9 - sum(ranks))
                blocks[i] += more > 0
                ranks[i] += more
            last = norms
        assert state["blocks"].tolist() == blocks
        for n, r in zip(names, ranks):
            A, B, C, was = *(pools[f"{n}.{k}"] for k in "ABC"), {k: before[f"{n}.{k}"] for k in "ABC"}
            old = len(was["C"])
            assert A.shape == (r, 6) and B.shape == (4, r) and C.shape == (r, r)
            assert torch.equal(C[:old, :old], was["C"]) and C.all() and A.all()
            assert torch.equal(A[:old], was["A"]) and torch.equal(B[:, :old], was["B"]) and not B[:, old:].any()
            if r > old:
                assert pools[f"{n}.gain"].item() == pytest.approx(1 / (r + 1e-5))
                assert dict(edit.config.ranks)[n] == r
    assert sum(ranks) == 9 and max(ranks) == 4


def test_two_zeros_do_not_train():
    """B and C both zero, as in the code that was found, get no gradient, and A none; with C drawn B does."""
    model, batch = make("llama")
    host = cw.Host(model, sites="*.q_proj")
    for some in (True, False):
        tenant = host.add(f"{some}", "triadaptlora", target=2)
        with torch.no_grad():
            for n, p in tenant.named_parameters():
                if n.endswith(".C") and not some:
                    p.zero_()
        with host.route(tenant.name):
            model(**batch).logits.square().mean().backward()
        assert some == any(bool(p.grad.any()) for p in tenant.parameters())


def test_formula_and_what_is_stored():
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = host.add("t", "triadaptlora", target=2, alpha=6, ranks=[["*.0.*", 2], ["*", 1]])
    name, g = "model.layers.0.self_attn.q_proj", torch.Generator().manual_seed(0)
    with torch.no_grad():
        tenant.pools[f"{name}.B"].normal_(generator=g)
    A, B, C = (tenant.pools[f"{name}.{k}"].detach() for k in "ABC")
    want = host.weight(name) + 6 / (2 + 1e-5) * B @ C @ A
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"], want, rtol=1e-4, atol=1e-5)
    small = host.compact("t")
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"], want, rtol=1e-4, atol=1e-5)
    assert small.pools[f"{name}.C"].shape == (2, 2)
    assert cw.plan("triadaptlora", [cw.Site("q", 16, 8)], target=6, start=2).count() == 2 * (16 + 8) + 2**2


@pytest.mark.parametrize(
    "options, says",
    [({"target": 1, "start": 2}, "start=2 is more than target=1"), ({"begin": 0.6, "end": 0.5}, "more than all steps"),
     ({"ranks": [["*", -1]]}, "must be >= 0"), ({"most": 8}, "no option of TriAdaptLoRA any more")],
)  # fmt: skip
def test_bad_options(options, says):
    with pytest.raises(cw.CommonweightError, match=says):
        cw.core.build(TriAdaptLoRA, options)
