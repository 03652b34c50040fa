"""Models of several senses, of convolutions and of states: every tenant's forward is that of its merged weights."""

from __future__ import annotations

import pytest
import torch
import transformers as tf
from torch import nn

import commonweight as cw
from commonweight.host.sites.families import towers
from tests.laws.subjects import stir
from tests.models import make

V = 61
TOWER = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
IDS = {"input_ids": torch.randint(3, 60, (3, 7), generator=torch.Generator().manual_seed(1))}


def image(size: int) -> dict:
    return {"pixel_values": torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(2))}


def resnet():
    config = tf.ResNetConfig(embedding_size=8, hidden_sizes=[16, 32], depths=[1, 1], num_labels=3)
    return tf.ResNetForImageClassification(config), image(32)


def whisper():
    config = tf.WhisperConfig(
        vocab_size=V, d_model=32, encoder_layers=1, decoder_layers=1, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=64, decoder_ffn_dim=64, num_mel_bins=8, max_source_positions=16,
        max_target_positions=16, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    sound = torch.randn(3, 8, 32, generator=torch.Generator().manual_seed(2))
    return tf.WhisperForConditionalGeneration(config), {"input_features": sound, "decoder_input_ids": IDS["input_ids"]}


def clip():
    text = {**TOWER, "vocab_size": V, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = tf.CLIPConfig(text_config=text, vision_config={**TOWER, "image_size": 8, "patch_size": 4})
    return tf.CLIPModel(config), {**IDS, **image(8)}


def llava():
    text = tf.LlamaConfig(**TOWER, vocab_size=V, num_key_value_heads=2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    vision = tf.CLIPVisionConfig(**TOWER, image_size=8, patch_size=4)
    config = tf.LlavaConfig(text_config=text, vision_config=vision, image_token_id=60, vision_feature_layer=-1)
    ids = torch.cat([torch.full((3, 4), 60), IDS["input_ids"]], 1)
    return tf.LlavaForConditionalGeneration(config), {"input_ids": ids, **image(8)}


def mamba():
    config = tf.MambaConfig(vocab_size=V, hidden_size=32, state_size=8, num_hidden_layers=2, pad_token_id=0)
    return tf.MambaForCausalLM(config), IDS


def mamba2():
    config = tf.Mamba2Config(
        vocab_size=V, hidden_size=32, state_size=8, num_hidden_layers=2, num_heads=8, head_dim=8, n_groups=2,
        chunk_size=4, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    return tf.Mamba2ForCausalLM(config), IDS


def zamba2():
    config = tf.Zamba2Config(
        vocab_size=V, hidden_size=32, mamba_d_state=8, mamba_headdim=8, mamba_ngroups=1, num_hidden_layers=3,
        layers_block_type=["mamba", "hybrid", "mamba"], num_attention_heads=4, intermediate_size=64,
        num_mem_blocks=1, adapter_rank=4, chunk_size=4, n_mamba_heads=8, pad_token_id=0,
    )  # fmt: skip
    return tf.Zamba2ForCausalLM(config), IDS


def jamba():
    config = tf.JambaConfig(
        vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        num_experts=2, mamba_d_state=8, mamba_dt_rank=4, use_mamba_kernels=False, pad_token_id=0,
    )  # fmt: skip
    return tf.JambaForCausalLM(config), IDS


def granite():
    config = tf.GraniteMoeHybridConfig(
        vocab_size=V, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["mamba", "attention"], num_local_experts=4, num_experts_per_tok=2,
        shared_intermediate_size=32, mamba_n_heads=8, mamba_d_head=8, mamba_d_state=8, mamba_n_groups=1,
        mamba_chunk_size=4, pad_token_id=0,
    )  # fmt: skip
    return tf.GraniteMoeHybridForCausalLM(config), IDS


MODELS = {
    f.__name__: f for f in (resnet, whisper, clip, llava, mamba, mamba2, zamba2, jamba, granite)
}  # fmt: skip


def made(name: str):
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    return model.eval(), batch


def answer(model, batch):
    out = model(**batch)
    return out.logits if "logits" in out else torch.cat([out.text_embeds, out.image_embeds], -1)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("method, sites", [("full", "*"), ("lora", None)])
@pytest.mark.parametrize("name", MODELS)
def test_routed_is_merged_and_a_row_is_that_row_alone(name, method, sites):
    model, batch = made(name)
    host = cw.Host(model)
    stir(host.add("t", method, sites=sites), std=0.05)
    stir(host.add("u", "lora", rank=2))
    with torch.no_grad():
        alone = {}
        for n in ("t", "u", None):
            with host.route(n):
                alone[n] = answer(model, batch)
        assert (alone["t"] - alone[None]).abs().max() > 1e-3
        plain, _ = made(name)
        plain.load_state_dict(host.merged("t"), strict=False)
        torch.testing.assert_close(answer(plain, batch), alone["t"], rtol=1e-4, atol=1e-5)
        with host.route(["t", None, "u"]):
            mixed = answer(model, batch)
    for i, n in enumerate(("t", None, "u")):
        torch.testing.assert_close(mixed[i], alone[n][i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name, words", [
    ("clip", {"language": "text_model.", "vision": "vision_model.", "projector": "_projection"}),
    ("llava", {"language": "language_model.", "vision": "vision_tower.", "projector": "multi_modal_projector."}),
    ("whisper", {"language": "decoder.", "audio": "encoder."}),
])  # fmt: skip
def test_a_word_names_a_tower(name, words):
    host = cw.Host(made(name)[0])
    for word, part in words.items():
        found = host.base.sites_of(word)
        assert found and all(part in s.name for s in found), word
        assert {s.name for s in found} < {s.name for s in host.base.sites_of(f"{word}|embeddings")}
    lacks = next(w for w in ("audio", "vision") if w not in words)
    with pytest.raises(cw.CommonweightError, match=rf"no {lacks} sites; it has language"):
        host.add("t", "lora", sites=lacks)


def test_a_text_alone_goes_through_a_tenant_of_all_towers():
    model, batch = made("llava")
    host = cw.Host(model)
    stir(host.add("t", "lora", sites="language|vision|projector", rank=2))
    texts = {"input_ids": batch["input_ids"][:, 4:]}
    plain, _ = made("llava")
    plain.load_state_dict(host.merged("t"), strict=False)
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(model, texts), answer(plain, texts), rtol=1e-4, atol=1e-5)


def test_coverage_counts_every_weight_once_and_says_how_to_read_the_rest():
    model, _ = make("llama")
    host = cw.Host(model)
    found = host.coverage("lora")
    assert found.total == sum(p.numel() for p in model.parameters())
    assert found.read + sum(x.numbers for x in found.left) == found.total
    assert [x.family for x in found.left] == ["embeddings", "heads", "norms"]
    assert found.left[0].sites == "embeddings" and "full" in found.left[2].methods
    assert "add them: sites='...|embeddings|heads'" in found.line and "lora reads 8" in str(found)
    host.add("t", "full", sites="*")
    assert host.coverage("t").share == 1.0 and not host.coverage("t").left


@pytest.mark.parametrize("kind", ["gpt2", "t5"])
def test_a_tied_weight_is_counted_once(kind):
    model, _ = make(kind)
    host = cw.Host(model)
    host.add("t", "full", sites="*")
    for of in (None, "lora", "t"):
        found = host.coverage(of)
        assert found.total == sum(p.numel() for p in model.parameters())
        assert found.read + sum(x.numbers for x in found.left) == found.total
    assert host.coverage("t").share == 1.0


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.up = nn.ConvTranspose1d(4, 6, 3, stride=2)
        self.out = nn.Conv1d(6, 2, 1)

    def forward(self, x, size=None):
        return self.out(self.up(x, size) if size else self.up(x))


def test_a_transposed_convolution_is_read_but_for_a_size_given_in_the_call():
    host = cw.Host(Decoder())
    assert {s.name: (s.kind, s.out, s.inp) for s in host.sites} == {"up": ("conv", 6, 12), "out": ("conv", 2, 6)}
    assert host.coverage().share == 1
    host.add("t", "lora", rank=2)
    host.add("o", "lora", rank=2, sites="out")
    x = torch.randn(2, 4, 5)
    with torch.no_grad(), host.route("t"):
        assert host.model(x).shape == (2, 2, 11)
        with pytest.raises(cw.CommonweightError, match="up: it was called with an output_size"):
            host.model(x, (12,))
    with torch.no_grad(), host.route("o"):
        assert host.model(x, (12,)).shape == (2, 2, 12)


@pytest.mark.parametrize("method", ["pissa", "lora-xs", "nlora", "oft", "boft", "fourierft"])
def test_convolutions_as_wide_as_their_kernel_are_left_out_where_a_rank_does_not_fit(method):
    model, _ = made("mamba2")
    host = cw.Host(model)
    options = {"n_frequency": 8} if method == "fourierft" else {}
    host.add("t", method, **options)
    names = {u.site for u in host["t"].plan.uses}
    assert names and not any(n.endswith("conv1d") for n in names)
    assert any(u.site.endswith("conv1d") for u in host.add("u", "lora").plan.uses)
    left = next(x for x in host.coverage(method).left if x.family.startswith("conv"))
    assert left.sites or left.todo.startswith("for them say another")
    host.add("v", "pissa", sites="*.conv1d", rank=2)
    assert {u.site.split(".")[-1] for u in host["v"].plan.uses} == {"conv1d"}


NORMS = {
    "batch": lambda: nn.BatchNorm2d(8), "no running mean": lambda: nn.BatchNorm2d(8, track_running_stats=False),
    "instance": lambda: nn.InstanceNorm2d(8, affine=True), "group": lambda: nn.GroupNorm(2, 8),
}  # fmt: skip


def pictures(norm: str) -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(8, 8, 3, padding=1, bias=False), NORMS[norm](), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False)]
    return nn.Sequential(*layers)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("method", ["bitfit", "lntuning", "full"])
def test_norms_of_channels_are_norms(norm, method):
    """Whose biases are all that many networks of convolutions have."""
    host = cw.Host(pictures(norm).eval())
    stir(host.add("t", method), std=0.3)
    assert "norm" in {s.kind for s in host["t"].sites}
    x = torch.randn(3, 8, 5, 5, generator=torch.Generator().manual_seed(1))
    like = pictures(norm).eval()
    like.load_state_dict(host.merged("t"), strict=False)
    with torch.no_grad(), host.route("t"):
        y = host.model(x)
        torch.testing.assert_close(y, like(x), rtol=1e-4, atol=1e-5)
    if norm != "no running mean":  # where a row is what the others are too
        with torch.no_grad(), host.route(["t", None, "t"]):
            mixed = host.model(x)
        torch.testing.assert_close(mixed[[0, 2]], y[[0, 2]])
        torch.testing.assert_close(mixed[1], pictures(norm).eval()(x)[1])
    like.train()
    host.model.train()
    with host.route("t"):
        torch.testing.assert_close(host.model(x), like(x), rtol=1e-4, atol=1e-5)
    for (n, b), c in zip(host.model.named_buffers(), like.buffers()):
        torch.testing.assert_close(b, c, msg=n)  # a running mean has moved once


def test_the_head_of_a_classifier_of_images_belongs_to_its_one_tower():
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    model = tf.ViTForImageClassification(tf.ViTConfig(**size, image_size=8, patch_size=4))
    assert towers(model)("classifier") == "vision"


def test_a_model_of_one_sense_is_one_tower():
    """Whatever its heads are called, and where a decoder says no words."""
    size = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    stem = {"conv_dim": (8,), "conv_stride": (4,), "conv_kernel": (4,), "num_conv_pos_embeddings": 4}
    sounds = tf.WavLMConfig(**size, **stem, num_feat_extract_layers=1, num_conv_pos_embedding_groups=2)
    boxes = tf.DetrConfig(
        use_timm_backbone=False, backbone=None, backbone_config=tf.ResNetConfig(out_features=["stage4"]).to_dict()
    )
    with torch.device("meta"):
        for model, sense in (
            (tf.WavLMForSequenceClassification(sounds), "audio"), (tf.WavLMForCTC(sounds), "audio"),
            (tf.DetrForObjectDetection(boxes), "vision"),
        ):  # fmt: skip
            assert {towers(model)(n) for n, _ in model.named_modules()} == {sense}
