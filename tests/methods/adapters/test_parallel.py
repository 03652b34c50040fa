"""The parallel adapter against its formula, written out on the model's own modules."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"size": 5}
VARIANTS = [{"placement": "both", "act": "gelu", "scale": 1.0}]


class Beside(nn.Module):
    """A module whose output has s (W_up act(W_down x + b_down) + b_up) added."""

    def __init__(self, module, pools, scale):
        super().__init__()
        self.module, self.pools, self.scale = module, [p.detach() for p in pools], scale

    def forward(self, x=None, *args, **kwargs):
        x = kwargs["hidden_states"] if x is None else x
        y = self.module(x, *args, **kwargs) if "hidden_states" not in kwargs else self.module(*args, **kwargs)
        down, down_bias, up, up_bias = self.pools
        more = self.scale * (torch.relu(x @ down.T + down_bias) @ up.T + up_bias)
        return (y[0] + more, *y[1:]) if isinstance(y, tuple) else y + more


PARTS = {
    "llama": ("model.layers", "mlp", "self_attn"),
    "gpt2": ("transformer.h", "mlp", "attn"),
    "vit": ("layers", "mlp", "attention"),
}


@pytest.mark.parametrize("kind", PARTS)
@pytest.mark.parametrize("placement", ["ffn", "attention"])
def test_formula_beside_a_module(kind, placement):
    model, batch = make(kind)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "parallel", size=5, placement=placement, scale=2.0), std=0.3)
    layers, ffn, attention = PARTS[kind]
    part = ffn if placement == "ffn" else attention
    for i, block in enumerate(plain.get_submodule(layers)):
        pools = [tenant.pools[f"{layers}.{i}.{part}.{k}"] for k in ("down", "down_bias", "up", "up_bias")]
        setattr(block, part, Beside(getattr(block, part), pools, 2.0))
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), answer(plain, batch))


def test_formula_beside_layers_that_are_no_module():
    """BERT's feed-forward part: x goes into `intermediate`, and the sum comes before the norm in `output`."""
    model, batch = make("bert")
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    tenant = stir(host.add("t", "parallel", size=5), std=0.3)
    for i, block in enumerate(plain.encoder.layer):
        pools = [tenant.pools[f"encoder.layer.{i}.ffn.{k}"].detach() for k in ("down", "down_bias", "up", "up_bias")]

        def chunk(block, pools, x):
            down, down_bias, up, up_bias = pools
            more = 4.0 * (torch.relu(x @ down.T + down_bias) @ up.T + up_bias)
            y = block.output.dense(block.intermediate(x))
            return block.output.LayerNorm(y + more + x)

        block.feed_forward_chunk = partial(chunk, block, pools)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, batch), answer(plain, batch))


def test_the_grouped_form_is_the_plain_one():
    bind = cw.bind.Parallel("gelu", 3.0)
    n, t, d, r = 3, 4, 6, 2
    x, y = torch.randn(n, t, d), torch.randn(n, t, d)
    slots = {"down": (n, r, d), "down_bias": (n, r), "up": (n, d, r), "up_bias": (n, d)}
    slots = {k: torch.randn(s) for k, s in slots.items()}
    each = [bind.output(x[i], y[i], None, **{k: v[i] for k, v in slots.items()}) for i in range(n)]
    torch.testing.assert_close(bind.grouped(x, y, None, **slots), torch.stack(each))


def parts(layers, width):
    kinds = ("mlp", "ffn"), ("attn", "attention")
    return [cw.Site(f"layers.{i}.{n}", width, width, k) for i in range(layers) for n, k in kinds]


def test_count_is_the_papers():
    """Table 1 with biases: 2 r d + r + d beside each feed-forward part."""
    assert cw.plan("parallel", parts(12, 768), size=512).count() == 12 * (2 * 512 * 768 + 512 + 768)
    assert cw.plan("parallel", parts(12, 768), placement="both").count() == 24 * (2 * 48 * 768 + 48 + 768)


def test_a_placement_without_a_site():
    with pytest.raises(cw.CommonweightError, match=r"parallel: placement='ffn', but none of the 1 site is of kind ffn"):
        cw.plan("parallel", [cw.Site("a", 8, 8, "attention")])


def test_a_model_without_parts_says_its_kinds():
    host = cw.Host(make("mlp")[0])
    with pytest.raises(
        cw.CommonweightError, match="parallel reads sites of kind ffn or attention; this model has none"
    ):
        host.add("t", "parallel")
