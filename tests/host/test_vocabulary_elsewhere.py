"""Vocabularies that grow where a model keeps its table, its head or its soft caps in a place of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.laws.subjects import stir

V, NEW = 61, 64
TOWER: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4
}  # fmt: skip
WORDS = {"vocab_size": V, "max_position_embeddings": 16, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGES = {**TOWER, "image_size": 8, "patch_size": 4}
TEXT = {**TOWER, **WORDS, "num_key_value_heads": 2, "head_dim": 8}
PIXELS = {"pixel_values": torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(2))}


def gemma4() -> Any:
    """A second table, of an entry for each token too."""
    rows = {"vocab_size_per_layer_input": V, "hidden_size_per_layer_input": 8, "layer_types": ["full_attention"]}
    config = tf.Gemma4TextConfig(**TEXT, **rows, global_head_dim=8, final_logit_softcapping=30.0)
    return tf.Gemma4ForCausalLM(config)


def recurrent() -> Any:
    config = tf.RecurrentGemmaConfig(
        **{**TEXT, "num_hidden_layers": 2},
        lru_width=32,
        attention_window_size=8,
        block_types=["recurrent", "attention"],
    )
    return tf.RecurrentGemmaForCausalLM(config)


def blip() -> Any:
    text = {**TOWER, **WORDS, "encoder_hidden_size": 32, "projection_dim": 32}
    return tf.BlipForConditionalGeneration(tf.BlipConfig(text_config=text, vision_config=IMAGES))


def captions() -> Any:
    said = tf.TrOCRConfig(**WORDS, d_model=32, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=32)
    config = tf.VisionEncoderDecoderConfig.from_encoder_decoder_configs(tf.ViTConfig(**IMAGES), said)
    return tf.VisionEncoderDecoderModel(config)


def clip() -> Any:
    return tf.CLIPModel(tf.CLIPConfig(text_config={**TOWER, **WORDS}, vision_config=IMAGES))


def made(build: Callable[[], Any]) -> cw.Host:
    torch.manual_seed(0)
    return cw.Host(build().eval())


def answers(host: cw.Host, readers: Any, ids: torch.Tensor) -> torch.Tensor:
    key = "decoder_input_ids" if "decoder" in type(host.model).__name__.lower() else "input_ids"
    more = PIXELS if "pixel_values" in type(host.model).forward.__annotations__ else {}
    with torch.no_grad(), host.route(readers):
        out = host.model(**{key: ids}, **more)
    return out.text_embeds if "text_embeds" in out else out.logits


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("build", [gemma4, recurrent, blip, captions, clip])
def test_old_tenants_stay_and_new_words_come_with_a_file(build, tmp_path):
    host, ids = made(build), torch.randint(3, V, (3, 6), generator=torch.Generator().manual_seed(1))
    stir(host.add("old", "lora", rank=2))
    before = {n: answers(host, n, ids) for n in (None, "old")}
    assert host.resize_vocabulary(NEW) == V
    for n, want in before.items():
        found = answers(host, n, ids)
        torch.testing.assert_close(found[..., : want.shape[-1]], want, rtol=1e-4, atol=1e-5)
        assert torch.isneginf(found[..., want.shape[-1] :]).all()
    stir(host.add("new", "lora", rank=2, token_rows=range(V, NEW)))
    ids[:, -2] = V + 1
    want = answers(host, "new", ids)
    torch.testing.assert_close(answers(host, ["new", "old", None], ids)[0], want[0], rtol=1e-4, atol=1e-5)
    path, again = host.save("new", tmp_path / "new.safetensors"), made(build)
    again.load("new", path)
    torch.testing.assert_close(answers(again, "new", ids), want, rtol=1e-4, atol=1e-5)
    assert all(host.merged("new"))


def test_a_model_whose_table_nobody_can_replace_says_so():
    class Closed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = torch.nn.Embedding(8, 4), torch.nn.Linear(4, 4)

        def get_input_embeddings(self) -> torch.nn.Module:
            return self.table

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layer(self.table(x))

    with pytest.raises(cw.CommonweightError, match="Closed has no table of tokens that could grow"):
        cw.Host(Closed()).resize_vocabulary(9)
