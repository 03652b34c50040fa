"""LoRETTA_rep against a tensor train contracted in one piece, and its count against the released layer's."""

import math

import pytest
import torch

import commonweight as cw
from commonweight.address import modes
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"rank": 4, "train_rank": 3}
VARIANTS = [{"train_rank": 1}, {"rank": 1}]
NAME = "model.layers.1.mlp.up_proj"


def full(cores, shape):
    """Entry (i_1 ... i_d) is the product of the slices of that entry, one core after another."""
    cores = [c.detach().double() for c in cores]
    cores = [c[None] if k == 0 else c[..., None] if k == len(cores) - 1 else c for k, c in enumerate(cores)]
    letters = "abcdefghijkl"
    terms, out = [], ""
    for k, _ in enumerate(cores):
        terms.append(f"{letters[k]}{letters[k].upper()}{letters[k + 1]}")
        out += letters[k].upper()
    return torch.einsum(f"{','.join(terms)}->{out}", *cores).reshape(shape).float()


def of(tenant, slot):
    names = [n for n in tenant.pools if n.startswith(f"{NAME}.{slot}.")]
    return [tenant.pools[n] for n in sorted(names, key=lambda n: int(n.rpartition(".")[2]))]


@pytest.mark.parametrize("options", [SMALL, *VARIANTS])
def test_formula(options):
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "loretta", alpha=6.0, **{**SMALL, **options}))
    w, r = host.weight(NAME), tenant.config.rank
    x_side = full(of(tenant, "A"), (w.shape[1], r))
    y_side = full(of(tenant, "B"), (r, w.shape[0]))
    torch.testing.assert_close(host.merged("t")[f"{NAME}.weight"], w + 6.0 / r * (x_side @ y_side).T)


def test_count_of_the_released_layer():
    """Modes 8, 8, 12 and 8 at rank 5: 580 numbers a factor."""
    plan = cw.plan("loretta", [cw.Site("q", 768, 768)], rank=8, train_rank=5)
    assert plan.count() == 2 * 580 and modes(768) == (8, 8, 12)


def test_start_has_the_deviation_of_the_released_one():
    host = cw.Host(make("llama")[0], sites=NAME)
    means = []
    for seed in range(30):
        tenant = host.add("t", "loretta", rank=8, train_rank=5, seed=seed)
        means.append(full(of(tenant, "A"), (host.weight(NAME).shape[1], 8)).square().mean())
        host.remove("t")
    assert torch.stack(means).mean().sqrt() == pytest.approx((host.weight(NAME).shape[1] + 8) ** -0.5, rel=0.25)


@pytest.mark.parametrize(
    ("width", "found"),
    [(1, (1,)), (7, (7,)), (12, (12,)), (13, (13,)), (26, (2, 13)), (127, (127,)), (1376, (4, 8, 43)), (169, (13, 13)),
     (4096, (8, 8, 8, 8)), (576, (8, 8, 9)), (1024, (4, 4, 8, 8))],
)  # fmt: skip
def test_modes(width, found):
    assert modes(width) == found and math.prod(found) == width
