"""Bottleneck adapters against the paper's formula, written out on the model's own layers."""

import copy

import pytest
import torch
from torch import nn

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"size": 5}
VARIANTS = [{"act": "gelu_new"}]


class Adapted(nn.Module):
    """A layer followed by W_up act(W_down y + b_down) + b_up and the residual sum."""

    def __init__(self, layer, down, down_bias, up, up_bias, act):
        super().__init__()
        self.layer, self.act = layer, act
        self.numbers = [t.detach() for t in (down, down_bias, up, up_bias)]

    def forward(self, x):
        down, down_bias, up, up_bias = self.numbers
        y = self.layer(x)
        return y + (self.act(y @ down.T + down_bias) @ up.T + up_bias)


ACTS = {"gelu": nn.GELU(), "gelu_new": nn.GELU("tanh"), "relu": nn.ReLU()}
LAYERS = {"houlsby": ("attention.output.dense", "output.dense"), "pfeiffer": ("output.dense",)}


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("placement", LAYERS)
def test_formula(placement, act):
    model, batch = make("bert")
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "bottleneck", reduction=4, act=act, placement=placement), std=0.3)
    for i, block in enumerate(plain.encoder.layer):
        for path in LAYERS[placement]:
            owner = block.get_submodule(path.removesuffix(".dense"))
            at = f"encoder.layer.{i}.{path}"
            numbers = [tenant.pools[f"{at}.{k}"] for k in ("down", "down_bias", "up", "up_bias")]
            assert numbers[0].shape == (8, 32)
            owner.dense = Adapted(owner.dense, *numbers, ACTS[act])
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), answer(plain, batch))


def test_the_grouped_form_is_the_plain_one():
    bind = cw.bind.Bottleneck("relu")
    n, t, d, r = 3, 4, 6, 2
    y = torch.randn(n, t, d)
    slots = {"down": (n, r, d), "down_bias": (n, r), "up": (n, d, r), "up_bias": (n, d)}
    slots = {k: torch.randn(s) for k, s in slots.items()}
    each = [bind.output(None, y[i], None, **{k: v[i] for k, v in slots.items()}) for i in range(n)]
    torch.testing.assert_close(bind.grouped(None, y, None, **slots), torch.stack(each))


def bert_base():
    return [
        cw.Site(f"encoder.layer.{i}.{n}", 768, w, "linear", role)
        for i in range(12)
        for n, w, role in (("attention.output.dense", 768, "attn_out"), ("output.dense", 3072, "down"))
    ]


def test_count_is_the_papers():
    """Section 2.1: 2 m d + d + m for an adapter of size m; two of them a layer."""
    assert cw.plan("bottleneck", bert_base(), size=64).count() == 24 * (2 * 64 * 768 + 768 + 64)
    half = cw.plan("bottleneck", bert_base(), reduction=16, placement="pfeiffer")
    assert half.count() == 12 * (2 * 48 * 768 + 768 + 48)
    assert all("attention" not in use.site for use in half.uses)


def test_vl_adapter_begins_at_random_and_has_the_norms_beside_it():
    host = cw.Host(make("bert")[0])
    options = {"reduction": 8, "act": "gelu_new", "start": "normal"}
    tenant = host.add("t", "bottleneck", modules_to_save=["*.LayerNorm"], **options)
    matrices = torch.cat([p.detach().flatten() for n, p in tenant.pools.items() if n.endswith((".down", ".up"))])
    assert matrices.std().item() == pytest.approx(0.02, rel=0.1)
    norms = [n for n, _ in tenant.named_parameters() if "LayerNorm" in n]
    assert len(norms) == 2 * (1 + 2 * 2) and tenant.count() == 4 * (2 * 4 * 32 + 4 + 32) + 5 * 2 * 32


def test_a_bottleneck_is_at_least_one_wide():
    assert cw.plan("bottleneck", [cw.Site("down", 8, 32)], reduction=16).pools["down.down"].shape == (1, 8)


def test_pfeiffer_without_a_feed_forward_site():
    sites = [s for s in bert_base() if s.role == "attn_out"]
    with pytest.raises(cw.CommonweightError, match=r"bottleneck: placement='pfeiffer' .* all 12 sites are attention"):
        cw.plan("bottleneck", sites, placement="pfeiffer")


def test_it_has_no_form_of_a_weight():
    host = cw.Host(make("llama")[0])
    host.add("t", "bottleneck", **SMALL)
    with pytest.raises(cw.CommonweightError, match="Bottleneck does not change a weight; it cannot be merged"):
        host.merged("t")
