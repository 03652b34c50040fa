"""Models of texts with images or sounds: towers, texts alone, and images that do not stand one in each row."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as tf

import commonweight as cw
from tests.host.test_layouts import same
from tests.laws.subjects import stir

V = 61
TOWER = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}
TEXT = {**TOWER, "vocab_size": V, "num_key_value_heads": 2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
IMAGE, START, FILM = 60, 59, 58
VISION = {"image_size": 8, "patch_size": 4}


def rand(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def texts(*images: int, tokens: int = 4, start: bool = False) -> torch.Tensor:
    """So many images in each row, each of so many places."""
    g = torch.Generator().manual_seed(1)
    one = ([START] if start else []) + [IMAGE] * tokens
    whole = max(images) * (len(one) + 1) + 3
    return torch.stack([
        torch.cat([torch.tensor(one * n, dtype=torch.long), torch.randint(3, 58, (whole - len(one) * n,), generator=g)])
        for n in images
    ])  # fmt: skip


ROPE = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 1e4}
PATCHES = {"depth": 1, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 1}
TOKENS = {"image_token_id": IMAGE, "video_token_id": FILM, "vision_start_token_id": START, "vision_end_token_id": 57}


def patches() -> dict[str, torch.Tensor]:
    """One image of 4 places in the first row, none in the second, two of 2 places in the third."""
    ids = texts(1, 0, 2, tokens=2, start=True)
    ids[0, :5] = torch.tensor([START, *[IMAGE] * 4])
    grid = torch.tensor([[1, 4, 4], [1, 2, 4], [1, 2, 4]])
    return {"input_ids": ids, "pixel_values": rand(32, 48), "image_grid_thw": grid,
            "attention_mask": torch.ones_like(ids), "mm_token_type_ids": ids.eq(IMAGE).int()}  # fmt: skip


def qwen2() -> Any:
    vision = {**PATCHES, "embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}
    config = tf.Qwen2VLConfig(text_config={**TEXT, "rope_parameters": ROPE}, vision_config=vision, **TOKENS)
    return tf.Qwen2VLForConditionalGeneration(config), patches()


def qwen2_5() -> Any:
    vision = {**PATCHES, "hidden_size": 32, "intermediate_size": 32, "out_hidden_size": 32, "window_size": 16,
              "fullatt_block_indexes": [0]}  # fmt: skip
    config = tf.Qwen2_5_VLConfig(text_config={**TEXT, "rope_parameters": ROPE}, vision_config=vision, **TOKENS)
    return tf.Qwen2_5_VLForConditionalGeneration(config), patches()


def llava() -> Any:
    config = tf.LlavaConfig(
        text_config=tf.LlamaConfig(**TEXT), vision_config=tf.CLIPVisionConfig(**TOWER, **VISION), image_token_id=IMAGE,
        vision_feature_layer=-1,
    )  # fmt: skip
    return tf.LlavaForConditionalGeneration(config), {"input_ids": texts(1, 0, 2), "pixel_values": rand(3, 3, 8, 8)}


def paligemma() -> Any:
    config = tf.PaliGemmaConfig(
        text_config=tf.GemmaConfig(**TEXT, head_dim=8), vision_config=tf.SiglipVisionConfig(**TOWER, **VISION),
        image_token_id=IMAGE, projection_dim=32,
    )  # fmt: skip
    ids = texts(1, 1, 1)
    return tf.PaliGemmaForConditionalGeneration(config), {
        "input_ids": ids, "pixel_values": rand(3, 3, 8, 8), "token_type_ids": torch.zeros_like(ids)
    }  # fmt: skip


def smolvlm() -> Any:
    config = tf.SmolVLMConfig(
        text_config=tf.LlamaConfig(**TEXT).to_dict(), vision_config={**TOWER, **VISION}, image_token_id=IMAGE,
        scale_factor=2,
    )  # fmt: skip
    pixels = rand(3, 2, 3, 8, 8)
    pixels[0, 1], pixels[1] = 0, 0  # images that are not there
    return tf.SmolVLMForConditionalGeneration(config), {"input_ids": texts(1, 0, 2, tokens=1), "pixel_values": pixels}


def films() -> dict[str, torch.Tensor]:
    """A video of 2 times 2 places in the first row, an image in the second, two videos of 2 places in the third."""
    ids, given = texts(1, 1, 2, tokens=2, start=True), patches()
    ids[ids == IMAGE] = FILM
    ids[0, :5] = torch.tensor([START, *[FILM] * 4])
    ids[1, :3] = torch.tensor([START, *[IMAGE] * 2])
    grid = torch.tensor([[2, 2, 4], [1, 2, 4], [1, 2, 4]])
    return {**given, "input_ids": ids, "pixel_values": rand(8, 48), "image_grid_thw": torch.tensor([[1, 2, 4]]),
            "pixel_values_videos": rand(32, 48), "video_grid_thw": grid,
            "mm_token_type_ids": ids.eq(IMAGE).int() + 2 * ids.eq(FILM).int()}  # fmt: skip


def qwen2_films() -> Any:
    return qwen2()[0], films()


def qwen2_5_films() -> Any:
    return qwen2_5()[0], {**films(), "second_per_grid_ts": torch.tensor([1.0, 2.0, 4.0])}


def qwen2_only_films() -> Any:
    batch = films()
    del batch["pixel_values"], batch["image_grid_thw"]
    batch["input_ids"][batch["input_ids"] == IMAGE] = 5
    return qwen2()[0], {**batch, "mm_token_type_ids": 2 * batch["input_ids"].eq(FILM).int()}


def one_film() -> Any:
    """Videos of 2 images, one after the other (LLaVA-NeXT-Video): in the first row one, in the third two."""
    config = tf.LlavaNextVideoConfig(
        text_config=tf.LlamaConfig(**TEXT), vision_config=tf.CLIPVisionConfig(**TOWER, **VISION), image_token_id=IMAGE,
        video_token_id=FILM, vision_feature_layer=-1, spatial_pool_stride=2,
    )  # fmt: skip
    ids = texts(1, 0, 2, tokens=2)
    ids[ids == IMAGE] = FILM
    return tf.LlavaNextVideoForConditionalGeneration(config), {
        "input_ids": ids, "pixel_values_videos": rand(3, 2, 3, 8, 8)
    }  # fmt: skip


FILMS = {f.__name__: f for f in (qwen2_films, qwen2_5_films, qwen2_only_films, one_film)}
MODELS = {f.__name__: f for f in (qwen2, qwen2_5, llava, paligemma, smolvlm)} | FILMS


def made(name: str) -> Any:
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    return model.eval(), batch


@pytest.mark.parametrize("name", MODELS)
def test_a_row_with_its_images_is_that_row_alone(name):
    model, batch = made(name)
    host = cw.Host(model)
    stir(host.add("t", "lora", sites="language|vision|projector", rank=2), std=0.2)
    stir(host.add("u", "lora", sites="vision|projector", rank=2), 1, std=0.2)
    stir(host.add("words", "lora", sites="language", rank=2), 2, std=0.2)
    alone = same(host, lambda m: m(**batch).logits, ["t", "u", "words"], lambda: made(name)[0])
    assert (alone["t"] - alone["u"]).abs().max() > 1e-3
    same(host, lambda m: m(**batch).logits, [None, "words", "u"])
    plain = {k: v for k, v in batch.items() if "pixel" not in k and "grid" not in k}
    plain["input_ids"] = batch["input_ids"].clamp(max=50)
    plain.pop("mm_token_type_ids", None)
    same(host, lambda m: m(**plain).logits, ["t", "u", "words"], lambda: made(name)[0])


@pytest.mark.parametrize("name", sorted({*MODELS} - {*FILMS}))
def test_towers_are_words(name):
    host = cw.Host(made(name)[0])
    found = {w: {s.name for s in host.base.sites_of(w)} for w in ("language", "vision", "projector")}
    assert all(found.values()) and not set.intersection(*found.values())
    assert all("visual" in n or "vision" in n for n in found["vision"])
    with pytest.raises(cw.CommonweightError, match="no audio sites; it has language, vision"):
        host.add("t", "lora", sites="audio")


def test_images_that_fit_no_row_are_refused():
    model, batch = made("qwen2")
    host = cw.Host(model)
    stir(host.add("t", "lora", sites="vision", rank=2))
    batch["image_grid_thw"] = torch.tensor([[1, 2, 4], [1, 4, 4], [1, 2, 4]])  # the first row's text has other places
    with (
        torch.no_grad(),
        host.route(["t", None, "t"]),
        pytest.raises(cw.CommonweightError, match="which row each is of"),
    ):
        model(**batch)


def wav2vec2() -> Any:
    config = tf.Wav2Vec2Config(
        **TOWER, vocab_size=V, conv_dim=(8, 8), conv_stride=(2, 2), conv_kernel=(3, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return tf.Wav2Vec2ForCTC(config).eval(), {"input_values": rand(3, 80)}


def siglip() -> Any:
    config = tf.SiglipConfig(
        text_config={**TOWER, "vocab_size": V, "max_position_embeddings": 16, "projection_size": 32},
        vision_config={**TOWER, **VISION},
    )  # fmt: skip
    return tf.SiglipModel(config).eval(), {"input_ids": texts(0, 0, 0) + 0, "pixel_values": rand(3, 3, 8, 8)}


def siglip2() -> Any:
    """Images of any shape: a row's patches behind one another, padded."""
    config = tf.Siglip2Config(
        text_config={**TOWER, "vocab_size": V, "max_position_embeddings": 16, "projection_size": 32},
        vision_config={**TOWER, "patch_size": 4, "num_patches": 16},
    )  # fmt: skip
    shapes, mask = torch.tensor([[2, 3], [3, 2], [1, 4]]), torch.ones(3, 6)
    mask[2, 4:] = 0
    images = {"pixel_values": rand(3, 6, 48), "pixel_attention_mask": mask, "spatial_shapes": shapes}
    return tf.Siglip2Model(config).eval(), {"input_ids": texts(0, 0, 0), **images}


PAIRS = [(siglip, {"language", "vision"}), (siglip2, {"language", "vision"})]


@pytest.mark.parametrize("build, words", [(wav2vec2, {"audio"}), *PAIRS])
def test_sounds_and_pairs(build, words):
    torch.manual_seed(0)
    model, batch = build()
    host = cw.Host(model)
    for w in words:
        assert host.base.sites_of(w)
    stir(host.add("t", "lora", sites="|".join(words), rank=2), std=0.2)
    stir(host.add("u", "lora", rank=2), 1, std=0.2)

    def run(m: Any) -> torch.Tensor:
        out = m(**batch)
        return out.logits if "logits" in out else torch.cat([out.text_embeds, out.image_embeds], -1)

    def plain() -> Any:
        torch.manual_seed(0)
        return build()[0]

    same(host, run, ["t", None, "u"], plain)
