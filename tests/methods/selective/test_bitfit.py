"""BitFit: every bias moves, and nothing else."""

import pytest
import torch

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import make

SMALL = {}
MODEL = "bert"


def READS(site):
    return site.bias


def test_formula():
    model, _ = make("bert")
    host = cw.Host(model)
    tenant = stir(host.add("t", "bitfit"))
    before, merged = dict(model.named_parameters()), host.merged("t")
    for name, value in merged.items():
        site, kind = name.rsplit(".", 1)
        want = before[name] + tenant.pools[f"{site}.db"].detach() if kind == "bias" else before[name]
        torch.testing.assert_close(value, want.detach())
    biases = [n for n in before if n.startswith("encoder.layer") and n.endswith(".bias")]
    assert sorted(biases) == sorted(n for n in merged if n.endswith(".bias"))
    assert tenant.count() == sum(before[n].numel() for n in biases)


def test_sites_without_bias_are_skipped():
    tenant = cw.Host(make("qwen")[0]).add("t", "bitfit")
    assert {u.site.rsplit(".", 1)[1] for u in tenant.plan.uses} == {"q_proj", "k_proj", "v_proj"}


def test_count():
    sites = [cw.Site("q", 64, 32), cw.Site("o", 32, 64, bias=False), cw.Site("n", 32, 1, "norm")]
    assert cw.plan("bitfit", sites).count() == 64 + 32


def test_a_model_without_biases():
    with pytest.raises(
        cw.CommonweightError,
        match=r"bitfit reads sites of kind linear, conv or norm that have a bias; none of these 18 sites has one; for",
    ):
        cw.Host(make("llama")[0]).add("t", "bitfit")
