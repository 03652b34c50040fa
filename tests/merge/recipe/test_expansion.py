"""Copies of a model's own blocks that add nothing until they are trained: a recipe of mergekit's passthrough."""

from __future__ import annotations

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight import adapt
from tests.adapt import tiny

RECIPE = """
merge_method: passthrough
dtype: float32
slices:
  - sources: [{model: BASE, layer_range: [0, 1]}]
  - sources:
      - model: BASE
        layer_range: [0, 1]
        parameters:
          scale: [{filter: o_proj, value: 0.0}, {filter: down_proj, value: 0.0}, {value: 1.0}]
  - sources: [{model: BASE, layer_range: [1, 2]}]
"""


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    at = tmp_path_factory.mktemp("grown")
    tiny.base(at / "base", "llama")
    (at / "recipe.yaml").write_text(RECIPE.replace("BASE", str(at / "base")))
    cw.merge.make(at / "recipe.yaml", at / "out")
    return at


def test_the_expanded_model_is_the_base_at_the_start(grown):
    """The expansion of LLaMA Pro and of ADEPT: equal logits, and one block more."""
    base, deeper = (tf.AutoModelForCausalLM.from_pretrained(grown / n).eval() for n in ("base", "out"))
    assert len(deeper.model.layers) == len(base.model.layers) + 1
    ids = torch.tensor([[2, 5, 9, 14, 3]])
    with torch.no_grad():
        assert torch.equal(base(ids).logits, deeper(ids).logits)
    copy, first = deeper.model.layers[1].state_dict(), base.model.layers[0].state_dict()
    for n, t in copy.items():
        assert torch.equal(t, torch.zeros_like(t) if "o_proj" in n or "down_proj" in n else first[n]), n


def test_a_tenant_trains_the_copies_alone(grown):
    host = adapt.open_host(grown / "out", "lm", dtype="float32")
    tenant = host.add("t", "full", sites="model.layers.1.*")
    assert {s.name.split(".")[2] for s in tenant.sites} == {"1"}
    ids = torch.tensor([[2, 5, 9, 14, 3]])
    with host.route("t"):
        host.model(input_ids=ids, labels=ids).loss.backward()
    moved = {n for n, p in tenant.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any("o_proj" in n for n in moved) and any("down_proj" in n for n in moved)
