"""APT: scores and growth written out a second time; growing changes no answer."""

import pytest
import torch

import commonweight as cw
from commonweight.adapt.scheduled import Scheduled, alone
from commonweight.core.schedule import Edit, Moment, carried
from commonweight.methods.low_rank.apt import APT, Growing
from tests.models import make

SMALL = {"rank": 1, "most": 3, "times": 2.0, "rounds": 2}
VARIANTS = [
    {"ranks": [["*q_proj", 1], ["*", 2]]},
    {"prune": 0.5, "heads": 4},
    {"prune": 0.5, "heads": 4, "masks": "bits"},
]


def test_the_better_half_grows_to_the_target():
    config = APT(rank=2, times=2.0, rounds=2, begin=0.0, end=0.5)
    names = ("a", "b", "c", "d")
    way, g = Growing(config, names, 1), torch.Generator().manual_seed(0)
    assert way.steps_of(8) == [2, 4]
    pools = {f"{n}.{k}": torch.randn(s, generator=g) for n in names for k, s in (("A", (2, 6)), ("B", (4, 2)))}
    state, edit = way.begin(None, pools, 8)
    assert edit == Edit()
    mean, ranks = [[0.0] * 2 for _ in names], [2] * 4
    for step in range(1, 6):
        grads = {n: torch.randn(p.shape, generator=g) for n, p in pools.items()}
        state, edit = way.after(Moment(step, 8, pools, grads, {}), state)
        if step <= 4:
            found = [[abs(float(a @ b)) for a, b in zip(pools[f"{n}.A"], grads[f"{n}.A"])] for n in names]
            mean = [[0.85 * m + 0.15 * f for m, f in zip(*pair)] for pair in zip(mean, found)]
        if step in (2, 4):
            score = [sum(m) / len(m) for m in mean]
            # a matrix of 4 x 6 has rank 4 at most
            best = sorted((i for i in range(4) if ranks[i] < 4), key=lambda i: -score[i])
            best = best[: (len(best) + 1) // 2]
            more = 80 * (1.5 if step == 2 else 2.0) - 10 * sum(ranks)
            rate = more / (10 * sum(ranks[i] for i in best)) + 1
            for i in best:
                ranks[i] = min(4, int(ranks[i] * rate))
            mean = [m + [0.0] * (r - len(m)) for m, r in zip(mean, ranks)]
            assert dict(edit.config.ranks) == dict(zip(names, ranks))
        else:
            assert edit == Edit()
        pools = {**pools, **{n: carried(pools[n], p) for n, p in edit.places.items()}, **edit.values}
        assert [pools[f"{n}.A"].shape for n in names] == [(r, 6) for r in ranks] and all(
            p.any() for p in pools.values()
        )
        assert way.settled(step, 8) == (step >= 4)
    assert 8 < sum(ranks) <= 16 and max(ranks) == 4


def test_growing_changes_no_answer():
    model, batch = make("llama")
    host = cw.Host(model, sites="*.q_proj")
    tenant = host.add("t", "apt", rank=2, rounds=2, begin=0.0, alpha=6)
    optimizer = torch.optim.AdamW(alone(tenant.param_groups(0.05)), weight_decay=0.0)
    at, site = Scheduled(tenant, optimizer, None, 4), "model.layers.0.self_attn.q_proj"
    at.begin()
    for step in range(1, 5):
        with host.route("t"):
            model(**batch).logits.square().mean().backward()
        optimizer.step()
        before = host.merged("t")[f"{site}.weight"].clone()
        at.after(step)
        torch.testing.assert_close(host.merged("t")[f"{site}.weight"], before, rtol=1e-4, atol=1e-5)
        optimizer.zero_grad()
    A, B = (tenant.pools[f"{site}.{k}"].detach() for k in "AB")
    torch.testing.assert_close(before, host.weight(site) + 3 * B @ A, rtol=1e-4, atol=1e-5)
    assert sum(p.shape[0] for n, p in tenant.pools.items() if n.endswith("A")) > 4 and host.compact("t") is tenant


@pytest.mark.parametrize(
    "options, says",
    [({"most": 1, "rank": 2}, "most=1 is less than rank=2"), ({"begin": 0.6, "end": 0.5}, "more than all steps"),
     ({"ranks": [["*", -1]]}, "must be >= 0")],
)  # fmt: skip
def test_bad_options(options, says):
    with pytest.raises(cw.CommonweightError, match=says):
        APT(**options)
