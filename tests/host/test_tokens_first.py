"""Models that hand their layers tokens before rows: mixed batches in one pass, and generation in them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.host.test_odd_models import fsmt
from tests.laws.subjects import stir

pytestmark = pytest.mark.filterwarnings("ignore")
IDS = torch.randint(4, 60, (4, 8), generator=torch.Generator().manual_seed(0))


def led() -> Any:
    torch.manual_seed(0)
    sizes = {f"{side}_{n}": v for side in ("encoder", "decoder") for n, v in
             (("ffn_dim", 48), ("layers", 2), ("attention_heads", 4))}  # fmt: skip
    config = tf.LEDConfig(
        vocab_size=61, d_model=32, max_encoder_position_embeddings=32, max_decoder_position_embeddings=32,
        attention_window=8, pad_token_id=1, bos_token_id=0, eos_token_id=2, **sizes,  # type: ignore[arg-type]
    )  # fmt: skip
    return tf.LEDForConditionalGeneration(config).eval()


def longformer() -> Any:
    torch.manual_seed(0)
    return tf.LongformerModel(tf.LongformerConfig(
        vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        attention_window=[8, 8], max_position_embeddings=40,
    )).eval()  # fmt: skip


METHODS = {"lora": {"rank": 2}, "ia3": {}, "parallel": {}, "loreft": {}}


def hosted(make: Any) -> cw.Host:
    host = cw.Host(make())
    for i, (method, options) in enumerate(METHODS.items()):
        stir(host.add(method, method, **options), i, std=0.2)
    return host


@pytest.mark.parametrize("make", [fsmt, led])
@pytest.mark.parametrize("beams", [1, 2])
def test_a_row_of_a_mixed_batch_is_generated_as_alone(make, beams):
    host = hosted(make)
    options = {"max_new_tokens": 5, "do_sample": False, "num_beams": beams}
    for route in (["lora", None, "ia3", "lora"], ["parallel", "lora", "loreft", None]):
        with host.route(route):
            together = host.model.generate(IDS, **options)
        for i, name in enumerate(route):
            with host.route(name):
                one = host.model.generate(IDS[i : i + 1], **options)[0]
            n = min(len(one), together.shape[1])
            assert torch.equal(together[i][:n], one[:n]) and (together[i][n:] == 1).all()


def aslant(y: torch.Tensor) -> torch.Tensor:
    """A sum with weights: behind a norm the plain one has no gradient but that of rounding."""
    return (y * torch.linspace(-1, 1, y.numel()).view_as(y)).sum()


@pytest.mark.parametrize("tokens", [4, 8])  # as many as rows, and not
@pytest.mark.parametrize("make", [fsmt, led, longformer])
def test_one_pass_for_all_readers(make, tokens):
    host = hosted(make)
    given: dict[str, Any] = {"input_ids": IDS[:, :tokens]}
    if make is longformer:
        given["global_attention_mask"] = torch.zeros_like(IDS[:, :tokens]).index_fill(1, torch.tensor([0]), 1)
    else:
        given |= {"decoder_input_ids": IDS[:, :tokens].flip(1), "use_cache": False}
    route = ["lora", None, "parallel", "ia3"]
    with torch.no_grad():
        with host.route(route):
            mixed = host.model(**given)[0]
        assert not host.base.model.forward.apart
        for i, name in enumerate(route):
            with host.route(name):
                torch.testing.assert_close(mixed[i], host.model(**given)[0][i], rtol=1e-4, atol=1e-5)
    with host.route(route):
        aslant(host.model(**given)[0][0]).backward()
    got = [p.grad for p in host["lora"].parameters()]
    assert any(g is not None and g.any() for g in got)
    for p in host["lora"].parameters():
        p.grad = None
    with host.route("lora"):
        aslant(host.model(**given)[0][0]).backward()
    for g, p in zip(got, host["lora"].parameters()):
        if p.grad is not None:
            torch.testing.assert_close(g, p.grad, rtol=1e-3, atol=1e-4)
