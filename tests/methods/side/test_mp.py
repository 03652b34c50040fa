"""MP's moments against the paper's covariances and the official code's, row by row without padding."""

from itertools import pairwise

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import commonweight as cw
from commonweight.adapt import Classifier
from commonweight.methods import MP, head_of
from tests.laws.subjects import stir
from tests.models import make

SMALL = {"width": 16, "heads": 2, "size": 3}
VARIANTS = [{"psrp": 2}, {"compat": "official"}]
MODEL = "bert"
LENGTHS = 6, 3, 5, 4


def case(**options):
    model, batch = make("bert")
    host = cw.Host(model)
    tenant = stir(host.add("t", "mp", width=24, heads=3, size=3, **options), std=0.3)
    mask = (torch.arange(batch["input_ids"].shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    return host, tenant, {**batch, "attention_mask": mask}


def states(host, batch, route=None):
    with torch.no_grad(), host.route(route):
        return host.model(**batch).last_hidden_state


def by_hand(y, t, official):
    """What the tokens of one row get, of y (N, d): a net of torch's modules."""
    z = F.linear(y, t["P"], t["p"])
    norm, first, second = nn.LayerNorm(8), nn.Conv2d(2, 2, 3, 2, bias=False), nn.Conv2d(2, 2, 3, 2, bias=False)
    for p, v in ((norm.weight, "gain"), (norm.bias, "shift")):
        p.data.copy_(t[v])
    first.weight.data.copy_(t["K"][0])
    second.weight.data.copy_(t["K"][1])
    heads = [norm(z[:, 8 * i : 8 * i + 8]) for i in range(3)]
    heads = [h - (h.mean() if official else h.mean(0)) for h in heads]
    crossed = [a.T @ b / len(y) for a, b in pairwise(heads)]
    crossed = torch.stack([c / c.norm(dim=0) for c in crossed])
    m = second(F.gelu(first(crossed[None]))).flatten()
    return t["U"] @ t["V"] @ m


@pytest.mark.parametrize("official", [False, True])
def test_formula(official):
    host, tenant, batch = case(compat="official" if official else "paper")
    plain, got = states(host, batch), states(host, batch, "t")
    (use,) = tenant.plan.uses
    t = {k: tenant.pools[f"{use.site}.{k}"].detach() for k in use.reads}
    for row, n in enumerate(LENGTHS):
        y = plain[row, :n]
        want = by_hand(y, t, official)
        torch.testing.assert_close(got[row, :n] - y, want.expand(n, -1), rtol=1e-3, atol=1e-5)
        assert want.abs().max() > 1e-2


def test_padded_rows_of_a_mixed_batch_are_as_alone():
    host, _, batch = case()
    stir(host.add("u", "mp", width=24, heads=3, size=3), 1, 0.3)
    mixed = states(host, batch, ["t", "u", None, "u"])
    for row, name in enumerate(["t", "u", None, "u"]):
        alone = states(host, {k: v[row : row + 1, : LENGTHS[row]] for k, v in batch.items()}, name)
        torch.testing.assert_close(mixed[row, : LENGTHS[row]], alone[0], rtol=1e-4, atol=1e-5)


def test_nothing_goes_back_through_the_model():
    host, _, batch = case()
    for p in host.model.parameters():
        p.requires_grad_(False)
    with host.route("t"):
        out = host.model(**batch, output_hidden_states=True)
    assert not out.hidden_states[-2].requires_grad and out.last_hidden_state.requires_grad


def test_count_is_the_papers():
    """512 (d + 1) + 256 + 162 and a linear layer of 2,883 inputs, here in two factors; 48 d a block in MP+."""
    sites = [cw.Site(f"b.{i}", 768, 768, "block") for i in range(12)]
    sites += [cw.Site(f"b.{i}.mlp", 768, 768, "ffn") for i in range(12)]
    projected = 512 * 769 + 256 + 162
    assert cw.plan("mp", sites, size=10).count() == projected + 10 * (2883 + 768)
    two = head_of(cw.methods.get("mp"), MP(second=True), sites, cw.Site("head", 0, 768, "head"), 1000)
    assert two.count() == projected + 768 * 1000 + 1000 + 2883 * 1000 + 1000
    assert cw.plan("mp", sites, size=10, psrp=16).count() == projected + 10 * (2883 + 768) + 12 * 48 * 768


def test_sizes_that_do_not_fit():
    with pytest.raises(cw.CommonweightError, match="width=30 is not a multiple of heads=4"):
        cw.plan("mp", [cw.Site("b", 8, 8, "block")], width=30)
    with pytest.raises(cw.CommonweightError, match="a head of 4 numbers is too narrow"):
        cw.plan("mp", [cw.Site("b", 8, 8, "block")], width=16)


@pytest.mark.parametrize("official", [False, True])
def test_two_heads(official, tmp_path):
    """The mean of both heads' logits; of padded rows, in a mixed batch and from a file."""
    model, batch = make("bert")
    host = cw.Host(Classifier(model))
    options = {"second": True, "compat": "official" if official else "paper"}
    tenant = stir(host.add("t", "mp", labels=4, width=24, heads=3, **options), std=0.3)
    mask = (torch.arange(batch["input_ids"].shape[1]) < torch.tensor(LENGTHS)[:, None]).long()
    batch = {"input_ids": batch["input_ids"], "attention_mask": mask}
    with torch.no_grad():
        y = model(**batch).last_hidden_state
        with host.route("t"):
            got = host.model(**batch).logits
    t = {k.rpartition(".")[2]: p.detach() for k, p in tenant.pools.items()}
    for row, n in enumerate(LENGTHS):
        mine = y[row, :n]
        second = by_hand(mine, {**t, "U": torch.eye(4)}, official) + t["c"]
        want = (mine.mean(0) @ t["W"].T + t["b"] + second) / 2
        torch.testing.assert_close(got[row], want, rtol=1e-3, atol=1e-5)
    host.add("u", "lora", labels=2)
    host.save("t", tmp_path / "t.safetensors")
    host.load("v", tmp_path / "t.safetensors")
    with torch.no_grad(), host.route(["t", "u", "v", "t"]):
        mixed = host.model(**batch).logits
    for row in (0, 2, 3):
        torch.testing.assert_close(mixed[row], got[row], rtol=1e-4, atol=1e-5)
    with host.route("t"):
        F.cross_entropy(host.model(**batch).logits, torch.tensor([0, 1, 2, 3])).backward()
    assert all(p.grad is not None and p.grad.any() for p in tenant.parameters())
