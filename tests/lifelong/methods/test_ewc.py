from __future__ import annotations

import torch

from commonweight.lifelong.methods.ewc import held, pull


def test_all_springs_in_one_pull_as_they_do_apart():
    """arXiv 1612.00796, eq. (3), a term for each task."""
    g = torch.Generator().manual_seed(0)
    fisher = [torch.rand(3, 4, generator=g) for _ in range(3)]
    there = [torch.randn(3, 4, generator=g) for _ in range(3)]
    x, y = (torch.randn(3, 4, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2))
    carried = {"F/p": sum(fisher), "Ft/p": sum(f * t for f, t in zip(fisher, there))}
    apart: torch.Tensor = sum(10.0 / 2 * (f * (x - t) ** 2).sum() for f, t in zip(fisher, there))  # type: ignore[assignment]
    together = pull({"p": y}, held(carried), 10.0)  # type: ignore[arg-type]
    one, other = (torch.autograd.grad(v, p)[0] for v, p in ((apart, x), (together, y)))
    assert torch.allclose(one, other, atol=1e-5)
    where = (carried["Ft/p"] / carried["F/p"]).requires_grad_()  # type: ignore[operator]
    assert pull({"p": where}, held(carried), 10.0).item() == 0  # type: ignore[arg-type]


def test_a_number_that_never_mattered_has_no_spring():
    carried = {"F/p": torch.tensor([0.0, 1.0]), "Ft/p": torch.tensor([0.0, 2.0])}
    assert pull({"p": torch.tensor([1e9, 2.0])}, held(carried), 1.0).item() == 0
