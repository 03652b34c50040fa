"""Full fine-tuning as a tenant, against a model whose own weights were trained."""

import copy

import torch
from torch.nn.utils import parameters_to_vector

import commonweight as cw
from tests.models import answer, make

SMALL = {}


def test_one_step_is_the_step_of_the_models_own_weights():
    model, batch = make("bert")
    own = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = host.add("t", "full")
    with host.route("t"):
        answer(model, batch).square().mean().backward()
    torch.optim.SGD(tenant.parameters(), 0.1).step()
    mine = [p for n, p in own.named_parameters() if ".layer." in n]
    answer(own, batch).square().mean().backward()
    torch.optim.SGD(mine, 0.1).step()
    merged = host.merged("t")
    got = parameters_to_vector(merged.get(n, p.detach()) for n, p in model.named_parameters())
    torch.testing.assert_close(got, parameters_to_vector(own.parameters()).detach(), rtol=1e-4, atol=1e-6)


def test_it_counts_the_blocks():
    model, _ = make("bert")
    blocks = sum(p.numel() for n, p in model.named_parameters() if ".layer." in n)
    assert cw.Host(model).add("t", "full").count() == blocks
