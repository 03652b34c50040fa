"""Padding of texts is no padding of images and sounds beside them."""

from typing import Any

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.host.test_families import TOWER, V, clip, llava, whisper
from tests.laws.subjects import can, small, stir


def rows(batch: dict[str, Any]) -> dict[str, Any]:
    """The same batch, the texts of its last rows cut short: padded on the right by a third."""
    mask = torch.ones_like(batch["input_ids"])
    mask[1:, -(mask.shape[1] // 3) :] = 0
    return {**batch, "attention_mask": mask}


@pytest.mark.parametrize("method", ["coda", "dyt", "vqt", "rpo"])
@torch.no_grad()
def test_an_image_is_read_whole_beside_a_text_with_padding(method):
    """CLIP's towers do not meet: what it makes of an image is the same without texts."""
    batch = clip()[1]
    layers = {**TOWER, "num_hidden_layers": 2}
    text = {**layers, "vocab_size": V, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    model = tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config={**layers, "image_size": 8, "patch_size": 4}))
    longer = torch.cat([batch["input_ids"], batch["input_ids"]], 1)[:, :12]
    batch = rows({**batch, "input_ids": longer})
    host = cw.Host(model.eval(), sites="vision" if method in ("coda", "dyt") else None)
    if not can(method, host):
        pytest.skip("it reads nothing here")
    stir(host.add("t", method, **small(method)), std=0.3)
    with host.route("t"):
        beside = host.model(**batch).image_embeds
    with host.route("t"):
        other = host.model(**{**batch, "attention_mask": torch.ones_like(batch["input_ids"])}).image_embeds
    torch.testing.assert_close(beside, other)


def there(model: Any, batch: dict[str, Any], **shapes: tuple[int, int]) -> dict[str, Any]:
    """What is said of sites that are given (B, T) tokens, in a pass of the batch."""
    host = cw.Host(model.eval())
    found: dict[str, Any] = {}

    def look(*_: Any) -> None:
        for site, shape in shapes.items():
            found[site] = host.base.current.there(site.replace("__", "."), torch.zeros(*shape, 8))

    handle = model.get_submodule(next(iter(shapes)).replace("__", ".")).register_forward_hook(look)
    with torch.no_grad(), host.route(None):
        model(**batch)
    handle.remove()
    return found


def test_llava():
    model, batch = llava()
    batch = rows(batch)
    n = batch["input_ids"].shape[1]
    tower, text = "model__vision_tower__encoder__layers__0", "model__language_model__layers__0"
    said = there(model, batch, **{tower: (3, 5), text: (3, n)})
    assert said[tower] is None and torch.equal(said[text], batch["attention_mask"].bool())


def test_whispers_encoder_has_no_padding_of_its_decoder():
    model, batch = whisper()
    given = batch["decoder_input_ids"]
    mask = torch.ones_like(given)
    mask[1:, -1] = 0
    encoder, decoder = "model__encoder__layers__0", "model__decoder__layers__0"
    said = there(
        model, {**batch, "decoder_attention_mask": mask}, **{decoder: tuple(given.shape), encoder: (3, given.shape[1])}
    )
    assert said[encoder] is None and torch.equal(said[decoder], mask.bool())


def test_frames_of_sounds_go_by_the_mask_of_their_samples():
    config = tf.Wav2Vec2Config(
        vocab_size=20, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16, 16), conv_stride=(4, 2), conv_kernel=(8, 4), num_feat_extract_layers=2, feat_extract_norm="layer",
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, mask_time_prob=0.0,
    )  # fmt: skip
    model = tf.Wav2Vec2Model(config)
    sound, mask = torch.randn(2, 200), torch.ones(2, 200, dtype=torch.long)
    mask[1, 100:] = 0
    frames = int(model._get_feat_extract_output_lengths(torch.tensor(200)))
    said = there(model, {"input_values": sound, "attention_mask": mask}, encoder__layers__0=(2, frames))
    want = model._get_feature_vector_attention_mask(frames, mask)
    assert torch.equal(said["encoder__layers__0"], want.bool()) and 0 < want[1].sum() < frames


def test_patches_of_images_go_by_their_own_mask():
    padding = cw.Host(clip()[0]).base.current.padding
    own = torch.tensor([[1, 1, 1, 0]])
    masks = {"attention_mask": torch.tensor([[0, 1, 1, 1]]), "pixel_attention_mask": own}
    x = torch.zeros(1, 4, 8)
    assert torch.equal(padding.there(masks, True, "vision_model.encoder.layers.0", x), own.bool())
    assert torch.equal(padding.there(masks, True, "text_model.encoder.layers.0", x), masks["attention_mask"].bool())
    assert padding.there(masks, True, "vision_model.encoder.layers.0", torch.zeros(1, 5, 8)) is None
