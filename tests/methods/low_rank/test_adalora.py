"""AdaLoRA beside PEFT's own allocator of ranks."""

import pytest
import torch

import commonweight as cw
from commonweight.core.schedule import Moment
from commonweight.methods.low_rank.adalora import AdaLoRA, Budget
from tests.models import make

SMALL = {"rank": 3, "target": 2, "every": 2}
VARIANTS = [{"ranks": [["*q_proj", 1], ["*", 2]]}]


def test_scores_and_budget_are_pefts():
    peft = pytest.importorskip("peft")
    from peft.tuners.adalora.layer import RankAllocator

    steps, names = 40, ("a", "b")
    config = AdaLoRA(rank=4, target=2, begin=0.1, end=0.3)
    ours = Budget(config, names)
    g = torch.Generator().manual_seed(0)

    def layer():
        return torch.nn.ModuleDict(
            {
                f"lora_{k}": torch.nn.ParameterDict({"t": torch.nn.Parameter(torch.randn(shape, generator=g))})
                for k, shape in {"A": (4, 6), "B": (5, 4), "E": (4, 1)}.items()
            }
        )

    model = torch.nn.ModuleDict({n: layer() for n in names})
    theirs = RankAllocator(
        model,
        peft.AdaLoraConfig(
            init_r=4, target_r=2, tinit=4, tfinal=12, deltaT=1, beta1=0.85, beta2=0.85, total_step=steps,
        ),
        "t",
    )  # fmt: skip
    theirs.set_total_step(steps)
    at = {"A": "A", "B": "B", "d": "E"}
    params = dict(model.named_parameters())

    def here(of):
        return {
            f"{n}.{k}": (v[:, 0] if k == "d" else v)
            for n in names for k in at for v in [of(params[f"{n}.lora_{at[k]}.t"]).clone()]
        }  # fmt: skip

    pools = here(lambda p: p.detach())
    state, _ = ours.begin(None, pools, steps)
    for step in range(1, steps - 12 + 1):
        for p in params.values():
            p.grad = torch.randn(p.shape, generator=g)
            p.data.add_(-0.1 * p.grad)
        pools, grads = here(lambda p: p.detach()), here(lambda p: p.grad)
        state, edit = ours.after(Moment(step, steps, pools, grads, {}), state)
        budget, _ = theirs.update_and_allocate(model, step, force_mask=step == steps - 12)
        assert ours.budget(step, steps) == budget
        if edit.values or edit.masks:
            for n in names:
                mine = edit.values.get(f"{n}.d", edit.masks.get(f"{n}.d"))
                assert torch.equal(mine != 0, params[f"{n}.lora_E.t"][:, 0].detach() != 0), step
    assert sum(int(m.sum()) for n, m in edit.masks.items() if n.endswith("d")) == 4


def test_formula():
    host = cw.Host(make("llama")[0], sites="*.q_proj")
    tenant = host.add("t", "adalora", rank=3, target=2, alpha=6)
    name = "model.layers.0.self_attn.q_proj"
    with torch.no_grad():
        tenant.pools[f"{name}.d"].copy_(torch.tensor([1.0, -2.0, 0.5]))
    A, B, d = (tenant.pools[f"{name}.{k}"].detach() for k in "ABd")
    want = host.weight(name) + 2 * sum(d[i] * torch.outer(B[:, i], A[i]) for i in range(3))
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"], want, rtol=1e-4, atol=1e-5)


def test_penalty_is_the_mean_of_norms():
    tenant = cw.Host(make("llama")[0], sites="*.q_proj").add("t", "adalora", rank=3, target=2, orthogonal=0.5)
    found = []
    for n, p in tenant.named_parameters():
        if not n.endswith("d"):
            m = p.detach() if n.endswith("A") else p.detach().T
            found.append((m @ m.T - torch.eye(3)).square().sum().sqrt())
    got = tenant.method.penalty(tenant.config, tenant.plan, tenant.pools)
    torch.testing.assert_close(got, 0.5 * sum(found) / len(found))


@pytest.mark.parametrize(
    "options, says",
    [({"rank": 2, "target": 3}, "target=3 is more than rank=2"), ({"begin": 0.6, "end": 0.5}, "more than all steps"),
     ({"ranks": [["*", -1]]}, "must be >= 0")],
)  # fmt: skip
def test_bad_options(options, says):
    with pytest.raises(cw.CommonweightError, match=says):
        AdaLoRA(**options)
