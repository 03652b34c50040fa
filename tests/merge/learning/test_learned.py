"""Methods that learn on rows: each lowers its own objective on a small real problem, and is applied as learned."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import commonweight as cw
from commonweight.merge.learning.blend import blend, entropy, minimise

from ..sample import gap

TASKS = 2


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 16), nn.Linear(16, 4)
        self.register_buffer("steps", torch.tensor(3))

    def forward(self, x):
        return self.b(self.a(x).tanh())


def rows(task, n=160, seed=0):
    """Four classes told by two of the six inputs, other two for each task."""
    x = torch.randn(n, 6, generator=torch.Generator().manual_seed(10 * seed + task))
    y = (x[:, 2 * task] > 0).long() + 2 * (x[:, 2 * task + 1] > 0).long()
    return x, y


@pytest.fixture(scope="module")
def trained():
    """(net, base, a fine-tuned model for each task)."""
    torch.manual_seed(0)
    net = Net()
    base = {k: t.clone() for k, t in net.state_dict().items()}
    models = []
    for task in range(TASKS):
        net.load_state_dict(base)
        x, y = rows(task)
        minimise(net.parameters(), lambda step, x=x, y=y: F.cross_entropy(net(x), y), steps=60, lr=2e-2)
        net.requires_grad_(True)
        models.append({k: t.clone() for k, t in net.state_dict().items()})
    net.load_state_dict(base)
    return net, base, models


def score(net, state, seed=5):
    """(mean entropy, mean loss, mean accuracy) over the tasks' test rows."""
    out = []
    for task in range(TASKS):
        x, y = rows(task, 300, seed)
        logits = torch.func.functional_call(net, state, (x,))
        accuracy = (logits.argmax(-1) == y).float().mean()
        out.append(torch.stack([entropy(logits), F.cross_entropy(logits, y), accuracy]).detach())
    return torch.stack(out).mean(0).tolist()


def unlabeled():
    return [[rows(t, seed=1)[0], rows(t, seed=2)[0]] for t in range(TASKS)]


def labeled():
    return [[{"x": rows(t, seed=s)[0], "labels": rows(t, seed=s)[1]} for s in (1, 2)] for t in range(TASKS)]


@pytest.mark.parametrize("by", ["tensor", "task"])
def test_adamerging_lowers_the_entropy(trained, by, tmp_path):
    net, base, models = trained
    found = cw.merge.adamerging.learn(net, models, base, unlabeled(), by=by, steps=60, lr=2e-2)
    start = cw.merge.task_arithmetic(models, base, scale=0.3)
    file = found.save(tmp_path / "c.safetensors")
    merged = cw.merge.adamerging(models, base, coefficients=file)
    assert score(net, merged)[0] < 0.6 * score(net, start)[0]
    assert found.header["losses"][-1] < found.header["losses"][0] and merged["steps"] == 3
    values = torch.stack([found.whole("coefficients", n) for n, _ in net.named_parameters()])
    assert values.min() >= 0 and values.max() <= 1
    assert (values.std(0).max() > 0) == (by == "tensor")


def test_adamerging_is_entropy_by_autograd_step_by_step(trained):
    net, base, models = trained
    data = [[rows(t)[0]] for t in range(TASKS)]
    found = cw.merge.adamerging.learn(net, models, base, data, by="task", steps=3, lr=0.1)
    c = nn.Parameter(torch.full((TASKS,), 0.3))
    adam = torch.optim.Adam([c], lr=0.1)
    names = [n for n, _ in net.named_parameters()]
    for step in range(3):
        state = {n: base[n] + sum(c[t].clamp(0, 1) * (models[t][n] - base[n]) for t in range(TASKS)) for n in names}
        loss = 0
        for t in range(TASKS):
            p = torch.func.functional_call(net, state, (data[t][0],)).softmax(-1)
            loss = loss - (p * p.log()).sum(-1).mean()
        assert abs(loss.item() - found.header["losses"][step]) < 1e-5
        adam.zero_grad()
        loss.backward()
        adam.step()
    assert torch.allclose(found.whole("coefficients", "a.bias"), c.detach().clamp(0, 1), atol=1e-5)


def test_atlas_lowers_the_loss_of_a_target(trained):
    net, base, models = trained
    target = [labeled()[1]]
    found = cw.merge.atlas.learn(net, models, base, target, loss=ce, steps=40)
    assert found.header["losses"][-1] < 0.5 * found.header["losses"][0]
    merged = cw.merge.atlas(models, base, coefficients=found)
    x, y = rows(1, 300, 5)
    loss = [F.cross_entropy(torch.func.functional_call(net, s, (x,)), y).item() for s in (base, merged)]
    assert loss[1] < 0.6 * loss[0]
    assert gap(merged, base) > 0 and len({tuple(t.tolist()) for t in (found._from or {}).values()}) == 4


def ce(call, batch, task):
    return F.cross_entropy(call(batch["x"]), batch["labels"])


@pytest.mark.parametrize("how", [{}, {"inner_lr": 0.05}, {"final": "hard"}, {"final": "draw"}])
def test_concrete_lowers_the_entropy(trained, how):
    net, base, models = trained
    found = cw.merge.concrete.learn(net, models, base, unlabeled(), steps=60, lr=0.1, scale=0.5, **how)
    merged = cw.merge.concrete(models, base, mask=found, scale=0.5)
    plain = cw.merge.task_arithmetic(models, base, scale=0.5)
    assert score(net, merged)[0] < score(net, plain)[0]
    for n, _ in net.named_parameters():
        mask = found.whole("mask", n)
        assert mask.min() >= 0 and abs(mask.mean() - 1) < 1e-4
        wanted = base[n] + 0.5 * mask * sum(m[n] - base[n] for m in models)
        assert (merged[n] - wanted).abs().max() < 1e-6
    again = cw.merge.concrete.learn(net, models, base, unlabeled(), steps=60, lr=0.1, scale=0.5, **how)
    assert all(torch.equal(again.whole("mask", n), found.whole("mask", n)) for n, _ in net.named_parameters())


def test_dam_makes_answers_steadier_under_a_trigger(trained):
    net, base, models = trained
    found = cw.merge.dam.learn(net, models, base, unlabeled(), steps=40, lr=0.1, scale=0.5, trigger_lr=0.02)
    merged = cw.merge.dam(models, base, mask=found, scale=0.5)
    plain = cw.merge.task_arithmetic(models, base, scale=0.5)
    assert found.header["losses"][-1] < found.header["losses"][0]
    assert score(net, merged)[0] < score(net, plain)[0]
    batches = [[{"input_ids": torch.ones(2, 3, dtype=torch.long)}]] * 2
    with pytest.raises(cw.CommonweightError, match="no floating-point input among input_ids to put a trigger on"):
        cw.merge.dam.learn(net, models, base, batches, steps=1)


@pytest.mark.parametrize("compat", [None, "official"])
def test_dam_step_by_step(trained, compat):
    """The authors' loop, with one mask; and the two masks that take turns, each with an Adam of its own."""
    net, base, models = trained
    data = [[x] for x, *_ in (rows(t, 20, 1) for t in range(TASKS))]
    draw = torch.Generator().manual_seed(7)
    names = [n for n, _ in net.named_parameters()]
    tau = {n: sum(m[n] - base[n] for m in models) for n in names}
    scores = [{n: torch.full_like(base[n], v).requires_grad_(True) for n in names} for v in (0.0, -2.0)]
    optimisers = [torch.optim.Adam(s.values(), lr=0.1) for s in scores]
    triggers = [torch.zeros(1, 6, requires_grad=True) for _ in data]
    aim = torch.optim.Adam(triggers, lr=0.05)

    def relaxed(s):
        u = {n: torch.rand(base[n].shape, generator=draw).clamp(1e-6, 1 - 1e-6) for n in names}
        return {n: torch.sigmoid((u[n].logit() + s[n]) / 0.5) for n in names}

    for step in range(4):
        detecting = compat is None and step % 2 == 1
        m = relaxed(scores[0])
        if compat is None:
            away = relaxed(scores[1])
            m = {n: m[n] * (1 - away[n]) for n in names}
        state = {n: base[n] + 0.5 * tau[n] * m[n] / m[n].mean() for n in names}

        def ask(x, state=state):
            return torch.func.functional_call(net, state, (x,))

        aim.zero_grad()
        for (x,), d in zip(data, triggers):
            (-F.cross_entropy(ask(x + d), ask(x).argmax(-1).detach())).backward(inputs=[d], retain_graph=True)
        aim.step()
        value = 0.0
        for (x,), d in zip(data, triggers):
            safe = entropy(ask(x + d.detach()))
            value = value + (safe if detecting else entropy(ask(x)) + 0.3 * safe)
        turn = int(detecting)
        optimisers[turn].zero_grad()
        value.backward(inputs=list(scores[turn].values()))
        optimisers[turn].step()
    options = {"steps": 4, "lr": 0.1, "trigger_lr": 0.05, "safety": 0.3, "scale": 0.5, "seed": 7}
    found = cw.merge.dam.learn(net, models, base, data, compat=compat, **options)
    for n in names:
        m = torch.sigmoid(scores[0][n].detach() / 0.5)
        if compat is None:
            m = m * (1 - torch.sigmoid(scores[1][n].detach() / 0.5))
        torch.testing.assert_close(found.whole("mask", n), m / m.mean(), rtol=1e-3, atol=1e-4)


def test_pareto_members_span_a_front(trained):
    """Along the front each task's loss falls with its preference, and the middle serves both better than averaging."""
    net, base, models = trained
    members = cw.merge.pareto.learn(net, models, base, labeled(), loss=ce, steps=80, lr=1e-2)
    middle = cw.merge.pareto(members)
    average = cw.merge.linear([{k: t for k, t in m.items() if k != "steps"} for m in models])
    assert score(net, middle)[1] < score(net, average)[1]
    losses = []
    for alpha in (0.0, 0.5, 1.0):
        state = cw.merge.pareto(members, weights=[alpha, 1 - alpha])
        x, y = rows(0, 300, 5)
        losses.append(F.cross_entropy(torch.func.functional_call(net, state, (x,)), y).item())
    assert losses[0] > losses[1] > losses[2]


def test_unconstrained_needs_no_gradient(trained, tmp_path):
    net, base, models = trained
    found = cw.merge.unconstrained.learn(
        lambda state: score(net, state, seed=1)[2], models, base, groups=1, budget=20, log=tmp_path / "log.json"
    )
    merged = cw.merge.unconstrained(models, base, coefficients=found)
    assert score(net, merged, seed=1)[2] == max(found.header["scores"]) > found.header["scores"][0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": []}, r"data has \[\] batches a task for 2 models"),
        ({"data": [[torch.ones(1, 6)], []]}, r"data has \[1, 0\] batches a task for 2 models"),
        ({"models": []}, "no models to merge"),
        ({"base": {"x": torch.ones(2)}}, "the base has no parameter of the model by its name"),
        ({"models": [{"a.weight": torch.ones(2, 2)}] * 2}, r"a.weight: model 0 has \(2, 2\), the model \(16, 6\)"),
        ({"data": [[torch.full((1, 6), torch.nan)]] * 2}, "step 0: the loss is nan; look at the rows, or lower"),
    ],
)
def test_bad_input(trained, change, message):
    net, base, models = trained
    given = {"models": models, "base": base, "data": unlabeled(), "steps": 2, **change}
    with pytest.raises(cw.CommonweightError, match=message):
        cw.merge.adamerging.learn(net, given.pop("models"), given.pop("base"), given.pop("data"), **given)


def test_the_model_itself_is_left_alone(trained):
    net, base, models = trained
    before = {k: t.clone() for k, t in net.state_dict().items()}
    whole = blend(net, models, base)
    assert whole.count == 2 and set(whole.base) == {"a.weight", "a.bias", "b.weight", "b.bias"}
    cw.merge.adamerging.learn(net, models, base, unlabeled(), steps=1)
    assert gap({k: t.float() for k, t in net.state_dict().items()}, {k: t.float() for k, t in before.items()}) == 0
