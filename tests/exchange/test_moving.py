"""Pools and parameters that are moved where they are read: the same loss, nothing written, nothing held twice."""

import pytest
import torch
from torch import nn

from commonweight.core.directions import direction
from commonweight.exchange.asks import Loss
from commonweight.exchange.moving import along, mezo_step, step_
from tests.exchange import small


@pytest.mark.parametrize("adapter", small.adapters())
def test_every_adapter_is_read_where_the_ask_says(bert, adapter):
    """Law: the loss along directions is that of pools that were moved before, alone and in a batch of two."""
    p = small.prepared(bert, "fedavg", small.options(adapter), batch_size=3)
    work, begin = small.work(p), small.start(p)
    for moves in (((7, 0.02), (8, -0.01)), ((9, 0.02),)):
        there = {n: v + sum(s * direction(k, n, tuple(v.shape)) for k, s in moves) for n, v in begin.items()}
        asks = [(0, Loss(begin, along=moves)), (1, Loss(begin)), (0, Loss(there))]
        got = work.answer(0, asks)
        assert got[0] == pytest.approx(got[2], abs=2e-5)
        assert work.answer(0, asks[:1])[0] == pytest.approx(got[0], abs=2e-5)
        assert work.answer(0, asks[1:2])[0] == pytest.approx(got[1], abs=2e-5)
    assert small.same(begin, small.start(p))


def test_only_named_pools_move(bert):
    p = small.prepared(bert, "fedavg", {"rank": 2}, batch_size=4)
    work, begin = small.work(p), small.start(p)
    some = tuple(n for n in begin if n.endswith(".A"))
    here, there = work.answer(0, [(0, Loss(begin)), (0, Loss(begin, along=((7, 0.1),), moved=some))])
    assert here == there  # B is zero
    assert work.answer(0, [(0, Loss(begin, along=((7, 0.1),)))])[0] != pytest.approx(here, abs=1e-6)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(11, 4)
        self.mix = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.ones(4))
        self.out = nn.Linear(4, 11, bias=False)
        self.out.weight = self.words.weight

    def forward(self, x):
        return self.out(self.scale * self.mix(self.words(x)).tanh())


def tied():
    torch.manual_seed(0)
    return Tied(), torch.arange(8)


def numbers(model):
    return {n: p.detach().clone() for n, p in model.named_parameters()}


def test_a_whole_model(bert):
    """Tied weights have one direction; the parameters are the same tensors, bit for bit, during and after."""
    model, x = tied()
    other, _ = tied()
    before, held = numbers(model), {n: p.data_ptr() for n, p in model.named_parameters()}
    with torch.no_grad():
        for n, p in other.named_parameters():
            p += 0.1 * direction(5, n, tuple(p.shape)) - 0.2 * direction(6, n, tuple(p.shape))
    with along(model, [(5, 0.1), (6, -0.2)]):
        got = model(x)
        assert torch.equal(got, model(x))
    assert (got - other(x)).abs().max() <= 1e-5 and not got.requires_grad
    assert small.same(before, numbers(model)) and held == {n: p.data_ptr() for n, p in model.named_parameters()}
    step_(model, [(5, 0.1), (6, -0.2)])
    assert all((a - b).abs().max() <= 1e-6 for a, b in zip(model.parameters(), other.parameters()))


def test_never_more_than_one_module_is_held_twice():
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(5)))
    own, most = {n: p.data_ptr() for n, p in model.named_parameters()}, []
    for m in model:
        m.register_forward_hook(
            lambda *_: most.append(sum(own[n] != p.data_ptr() for n, p in model.named_parameters()))
        )
    with along(model, [(1, 0.1)]):
        model(torch.randn(2, 4))
    assert max(most) <= 2  # a weight and its bias


def test_after_an_error_all_is_as_before():
    model, _ = tied()
    before = numbers(model)
    with pytest.raises(IndexError), along(model, [(1, 0.1)]):
        model(torch.tensor([99]))
    assert small.same(before, numbers(model))


def test_an_embedding_is_read_by_rows():
    """Of a large one, what is moved is what is read; one with a largest norm is moved whole."""
    for most in (None, 0.5):
        torch.manual_seed(0)
        model, x = nn.Embedding(50, 8, padding_idx=3, max_norm=most), torch.tensor([[3, 7], [7, 49]])
        want = model.weight.detach() + 0.1 * direction(2, "weight", (50, 8))
        with along(model, [(2, 0.1)]):
            got = model(x)
        wanted = want[x] if most is None else nn.functional.embedding(x, want.clone(), max_norm=most)
        assert (got - wanted).abs().max() <= 1e-6


class Aside(nn.Module):
    """Reads a weight without its module's forward."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return nn.functional.linear(self.a(x), self.b.weight)


def test_what_cannot_be_moved_is_told():
    model, x = Aside(), torch.randn(2, 4)
    with pytest.raises(ValueError, match=r"b\.bias: was not moved \(2 of 4 parameters\)"), along(model, [(1, 0.1)]):
        model(x)
    with along(model, [(1, 0.1)], names=["a.weight", "a.bias"]):
        model(x)


def test_a_mezo_step():
    model, x = tied()
    before, y = numbers(model), torch.arange(8).flip(0)
    slope = mezo_step(model, lambda: nn.functional.cross_entropy(model(x), y), 3, eps=1e-2, rate=0.5)
    other, _ = tied()
    nn.functional.cross_entropy(other(x), y).backward()
    grads = {n: p.grad for n, p in other.named_parameters() if p.grad is not None}
    want = sum(float((g * direction(3, n, tuple(g.shape))).sum()) for n, g in grads.items())
    assert slope == pytest.approx(want, rel=2e-2)
    for n, p in model.named_parameters():
        assert (p - (before[n] - 0.5 * slope * direction(3, n, tuple(p.shape)))).abs().max() <= 1e-6
    step_(model, [(3, 0.5 * slope)])
    assert all((p - before[n]).abs().max() <= 1e-6 for n, p in model.named_parameters())
