"""Uni-LoRA against its projection, written out as a matrix, and against PEFT's grouping."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"dim": 50, "rank": 2}


def test_formula():
    model, _ = make("llama")
    host = cw.Host(model)
    tenant = stir(host.add("t", "uni-lora", dim=30, rank=2))
    names = [f"model.layers.{i}.self_attn.{n}_proj" for i in range(2) for n in "qv"]
    assert [u.site for u in tenant.plan.uses] == names
    groups = tenant.pools["index"].long()
    P = torch.nn.functional.one_hot(groups, 30).float()
    P = P / P.sum(0).sqrt()
    torch.testing.assert_close(P.T @ P, torch.eye(30))
    every = P @ tenant.pools["theta"].detach()
    merged = host.merged("t")
    for name in names:
        out, inp = host.weight(name).shape
        A, B, every = (
            every[: 2 * inp].view(2, inp),
            every[2 * inp : 2 * (inp + out)].view(out, 2),
            every[2 * (inp + out) :],
        )
        torch.testing.assert_close(merged[f"{name}.weight"], host.weight(name) + B @ A)
    assert not len(every)


def test_groups_are_as_large_as_in_peft():
    from peft.tuners.unilora.model import UniLoraModel

    theirs = torch.bincount(UniLoraModel.generate_index(1000, 30, 0)).sort().values
    ours = torch.bincount(cw.methods.uni_lora.Partition(30)((1000,), cw.core.Rng(0, "index"), None)).sort().values
    assert torch.equal(ours, theirs)


def test_the_start_is_small_and_uniform():
    model, _ = make("llama")
    theta = cw.Host(model).add("t", "uni-lora", dim=448, rank=2, bound=0.02).pools["theta"]
    assert theta.abs().max() <= 0.02 and abs(theta.std() - 0.02 / 3**0.5) < 2e-3


def test_count_is_d():
    sites = [cw.Site(f"layers.{i}.{n}_proj", 4096, 4096) for i in range(32) for n in "qv"]
    for rank in (4, 64):
        plan = cw.plan("uni-lora", sites, dim=524_288, rank=rank)
        assert plan.count() == 524_288 and plan.nbytes == 4 * 524_288


def test_more_entries_than_there_are_to_fill():
    with pytest.raises(cw.CommonweightError, match=r"uni-lora: dim=500 is more than the 80 numbers of all A and B"):
        cw.plan("uni-lora", [cw.Site("q", 8, 32)], dim=500, rank=2)
