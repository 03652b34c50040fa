"""RoAd against its rotation matrix, written out pair by pair."""

import math

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"group_size": 4}


def matrix(variant, group, theta, alpha, width):
    """R (d_out, d_out) entry by entry."""
    R = torch.zeros(width, width)
    for i in range(width):
        g, j = divmod(i, group)
        first = j < group // 2
        partner = g * group + (j + group // 2) % group
        if variant == "road_1":
            near = far = g * (group // 2) + j % (group // 2)
        elif variant == "road_2":
            near = far = i
        else:
            near, far = g * 2 * group + j, g * 2 * group + group + j
        R[i, i] = alpha[near] * math.cos(theta[near])
        R[i, partner] = alpha[far] * math.sin(theta[far]) * (-1 if first else 1)
    return R


@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
def test_formula(variant):
    host = cw.Host(make("bert")[0])
    tenant = stir(host.add("t", "road", variant=variant, group_size=8), std=0.5)
    merged = host.merged("t")
    name = "encoder.layer.0.intermediate.dense"
    R = matrix(variant, 8, *(tenant.pools[f"{name}.{s}"].detach() for s in ("theta", "alpha")), 64)
    torch.testing.assert_close(merged[f"{name}.weight"], R @ host.weight(name))
    torch.testing.assert_close(merged[f"{name}.bias"], R @ host.model.get_submodule(name).bias)


def test_one_angle_a_pair_is_a_rotation():
    host = cw.Host(make("llama")[0])
    tenant = host.add("t", "road", group_size=4, sites="*.q_proj")
    with torch.no_grad():
        for name, p in tenant.named_parameters():
            if name.endswith("theta"):
                p.uniform_(-3.0, 3.0)
    for name, w in host.merged("t").items():
        torch.testing.assert_close(w.norm(dim=0), host.weight(name.removesuffix(".weight")).norm(dim=0))


@pytest.mark.parametrize("variant, k", [("road_1", 1), ("road_2", 2), ("road_4", 4)])
def test_count_is_the_papers(variant, k):
    sites = [cw.Site(f"layers.{i}.q_proj", 4096, 1024) for i in range(32)]
    assert cw.plan("road", sites, variant=variant).count() == 32 * k * 4096


def test_an_odd_group():
    with pytest.raises(cw.CommonweightError, match="RoAd: group_size=5 is odd; a group is made of pairs"):
        cw.methods.RoAd(group_size=5)


def test_a_width_that_groups_do_not_divide():
    with pytest.raises(
        cw.CommonweightError,
        match=r"road: v: output width 80 is not a multiple of group_size=64; choose group_size from \[16, 8, 4, 2\]",
    ):
        cw.plan("road", [cw.Site("v", 80, 32)])
    with pytest.raises(
        cw.CommonweightError, match="road: v: output width 81 is not a multiple of group_size=64; exclude the site"
    ):
        cw.plan("road", [cw.Site("v", 81, 32)])
