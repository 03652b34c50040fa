"""Models of images whose blocks lay tokens out as an image, or pool them; and tenants that would train nothing."""

from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

import commonweight as cw
from commonweight.core.errors import CommonweightError
from tests.laws.subjects import stir
from tests.models import make

X = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(3))
SIZES: dict[str, dict[str, Any]] = {
    "Segformer": {
        "hidden_sizes": [8, 16], "num_encoder_blocks": 2, "depths": [1, 1], "sr_ratios": [2, 1], "patch_sizes": [7, 3],
        "strides": [4, 2], "num_attention_heads": [1, 2], "mlp_ratios": [2, 2], "decoder_hidden_size": 16,
    },
    "PvtV2": {
        "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "num_attention_heads": [1, 1, 2, 2], "image_size": 64,
    },
    "Hiera": {"embed_dim": 8, "image_size": [64, 64], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
}  # fmt: skip


def made(kind: str) -> Any:
    torch.manual_seed(0)
    config = getattr(tf, f"{kind}Config")(num_labels=3, **SIZES[kind])
    model = getattr(tf, f"{kind}ForImageClassification")(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.1 * torch.randn_like(p))
    return model


def mixed(host: cw.Host, name: str) -> torch.Tensor:
    """A tenant alone; a mixed batch is that, and the base in its rows."""
    model = host.base.model
    with torch.no_grad():
        base = model(X).logits
        with host.route(name):
            alone = model(X).logits
        with host.route([name, None, name]):
            both = model(X).logits
    torch.testing.assert_close(both, torch.stack([alone[0], base[1], alone[2]]), rtol=1e-4, atol=1e-5)
    assert (alone - base).abs().max() > 1e-4
    return alone


@pytest.mark.parametrize("kind", ["Segformer", "PvtV2"])
def test_parts_with_a_convolution_see_all_tokens(kind):
    """A convolution reads its neighbours, so that tokens that skip are computed, and their gates shut behind it."""
    host = cw.Host(made(kind))
    stir(host.add("t", "dyt", size=4), std=0.3)
    alone = mixed(host, "t")
    with host.route("t"):  # the same where a graph is made
        torch.testing.assert_close(host.base.model(X).logits, alone)


def test_moments_of_pooled_tokens():
    host = cw.Host(made("Hiera"))
    stir(host.add("t", "mp", width=28, heads=2), std=0.3)
    mixed(host, "t")


def test_tokens_of_a_pooling_block_cannot_skip_it():
    host = cw.Host(made("Hiera"))
    host.add("t", "coda")
    for readers in ("t", ["t", None, "t"]):
        with host.route(readers), pytest.raises(CommonweightError, match=r"stages.0: this block is given .*lora"):
            host.base.model(X)

    class Pools(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return x[:, ::2] + self.two(self.one(self.norm(x[:, ::2])))

    host = cw.Host(nn.Sequential(Pools(), Pools()).eval())
    host.add("t", "coda", reduction=1.5)
    with host.route("t"), torch.no_grad(), pytest.raises(CommonweightError, match=r"0: it gives .* no token can skip"):
        host.base.model(torch.randn(2, 8, 8))


def test_a_tenant_with_nothing_to_train_is_refused():
    host = cw.Host(made("PvtV2"))
    said = r"mp would have no trainable number.* 4 sites here, ffn, and no block; name sites of kind block.*lora"
    with pytest.raises(CommonweightError, match=said):
        host.add("t", "mp")
    assert "t" not in host and host.add("t", "mp", psrp=4).count() > 0
    hiera = cw.Host(made("Hiera"))
    with pytest.raises(CommonweightError, match=r"mp would have no trainable number.*; give labels="):
        hiera.add("t", "mp", second=True)


def test_a_tenant_that_trains_what_stands_beside_its_method():
    host = cw.Host(made("PvtV2"))
    tenant = host.add("t", "mp", modules_to_save=["classifier"])
    assert tenant.count() == sum(p.numel() for p in host.base.model.classifier.parameters())
    host = cw.Host(cw.Classifier(make("bert")[0]))
    parts = {s.name for s in host.sites if s.kind == "ffn"}
    head = host.add("t", "mp", sites=lambda name, _: name in parts, labels=2).count()
    assert head == host.add("p", "probe", labels=2).count() > 0
    with pytest.raises(CommonweightError, match="no trainable number"):
        host.add("n", "mp", sites=lambda name, _: name in parts)
