"""Low-rank updates as one node of the graph: the same numbers and derivatives as the formula."""

import pytest
import torch
from torch import Tensor

from commonweight.bind import LowRank, fused


class Base:
    training, bias = True, None
    weight = torch.zeros(())

    def call(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return torch.nn.functional.linear(x, weight, bias)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed + sum(shape))
    return torch.randn(*shape, generator=g, dtype=torch.float64).requires_grad_()


def slots(more: tuple[str, ...] = ()) -> dict[str, Tensor]:
    shapes = {"A": (3, 5), "B": (4, 3), "M": (3, 3), "d": (3,), "b": (4,)}
    return {n: drawn(*shapes[n], seed=7) for n in ("A", "B", *more)}


EVERY = [(), ("M",), ("d",), ("d", "M"), ("b",)]


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("more", EVERY)
@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_derivatives_of_both_orders(more, own, shape):
    given = slots(more)
    names, w = [*given], drawn(4, 5).detach()

    def run(x: Tensor, *pools: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, w, torch.ones(4, dtype=w.dtype))  # with a bias it is a view
        return LowRank(0.7).trained(x, y, Base(), w if own else None, **dict(zip(names, pools)))

    inputs = (drawn(*shape, 5), *given.values())
    assert torch.autograd.gradcheck(run, inputs)
    assert torch.autograd.gradgradcheck(run, inputs)


@pytest.mark.parametrize("frozen", ["x", "A", "B"])
def test_no_more_is_computed_than_is_asked_for(frozen):
    given, w, x = slots(), drawn(4, 5).detach(), drawn(6, 5)
    want = [t for n, t in {"x": x, **given}.items() if n != frozen]
    {"x": x, **given}[frozen].requires_grad_(False)
    for weight in (None, w):
        y = torch.nn.functional.linear(x, w)
        got = LowRank(0.5).trained(x, y, Base(), weight, **given)
        plain = torch.nn.functional.linear(x, w + 0.5 * given["B"] @ given["A"])
        torch.testing.assert_close(got, plain)
        for a, b in zip(torch.autograd.grad(got.cos().sum(), want), torch.autograd.grad(plain.cos().sum(), want)):
            torch.testing.assert_close(a, b)


def test_dropout_is_on_the_update_alone():
    given, w, x = slots(), drawn(4, 5).detach(), drawn(6, 5)

    def run(how: str) -> tuple[Tensor, ...]:
        torch.manual_seed(1)
        bind, y = LowRank(0.5, dropout=0.5), torch.nn.functional.linear(x, w)
        out = bind.trained(x, y, Base(), w, **given) if how == "trained" else bind.output(x, y, Base(), **given)
        return out, *torch.autograd.grad(out.cos().sum(), [x, *given.values()])

    for a, b in zip(run("trained"), run("output")):
        torch.testing.assert_close(a, b)


@pytest.mark.filterwarnings("ignore:.*torch.jit.script")  # torch loads its rules of forward mode with it
def test_what_is_more_than_autograd_takes_the_plain_way():
    """Function transforms, forward mode and autocast: they have no rule for a node of our own."""
    given, w, x = slots(), drawn(4, 5).detach(), drawn(6, 5)

    def run(x: Tensor, A: Tensor) -> Tensor:
        y = torch.nn.functional.linear(x, w)
        return LowRank(0.5).trained(x, y, Base(), w, A=A, B=given["B"]).cos().sum()

    want = torch.autograd.grad(run(x, given["A"]), given["A"])[0]
    torch.testing.assert_close(torch.func.grad(run, 1)(x, given["A"]), want)
    _, along = torch.func.jvp(lambda A: run(x, A), (given["A"],), (torch.ones_like(given["A"]),))
    torch.testing.assert_close(along, want.sum())
    assert not fused.recorded(x, given["A"].float())
    with torch.no_grad():
        assert not fused.recorded(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert not fused.recorded(x)
        short = {n: p.float() for n, p in given.items()}
        y = torch.nn.functional.linear(x.float(), w.float())
        assert LowRank().trained(x.float(), y, Base(), None, **short).dtype is torch.bfloat16
