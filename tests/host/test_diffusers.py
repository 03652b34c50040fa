"""Models of diffusers: sites, every tenant's merged weights, mixed batches, and the files that diffusers writes."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
from safetensors import safe_open

import commonweight as cw
from tests.host.test_layouts import same
from tests.laws.subjects import small, stir

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    D = pytest.importorskip("diffusers")
pytestmark = pytest.mark.filterwarnings("ignore")
B = 3
TIMES = torch.tensor([1, 5, 9])


def rand(*shape: int, seed: int = 2) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


UNET = {
    "sample_size": 8, "layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4,
    "attention_head_dim": 4,
}  # fmt: skip
CROSSED = {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "cross_attention_dim": 16, "in_channels": 4, "out_channels": 4,
}  # fmt: skip
CODED = {
    "in_channels": 3, "out_channels": 3, "down_block_types": ("DownEncoderBlock2D",) * 2, "layers_per_block": 1,
    "up_block_types": ("UpDecoderBlock2D",) * 2, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8,
}  # fmt: skip
HEADS = {"num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
DIT = {"sample_size": 8, "patch_size": 2, "in_channels": 4, **HEADS}


def unet() -> Any:
    return D.UNet2DConditionModel(**UNET, **CROSSED), (rand(B, 4, 8, 8), 3, rand(B, 5, 16))


def unet_xl() -> Any:
    model = D.UNet2DConditionModel(
        **UNET, **CROSSED, use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=4,
        projection_class_embeddings_input_dim=6 * 4 + 10, transformer_layers_per_block=(1, 2),
    )  # fmt: skip
    more = {"text_embeds": rand(B, 10), "time_ids": rand(B, 6)}
    return model, {"sample": rand(B, 4, 8, 8), "timestep": 3, "encoder_hidden_states": rand(B, 5, 16),
                   "added_cond_kwargs": more}  # fmt: skip


def unet_of_classes() -> Any:
    model = D.UNet2DModel(
        **UNET, in_channels=3, out_channels=3, down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"), num_class_embeds=5,
    )  # fmt: skip
    return model, (rand(B, 3, 8, 8), TIMES, torch.tensor([0, 3, 1]))


def dit() -> Any:
    model = D.DiTTransformer2DModel(**DIT, out_channels=4, num_embeds_ada_norm=10)
    return model, {"hidden_states": rand(B, 4, 8, 8), "timestep": TIMES, "class_labels": torch.tensor([0, 3, 1])}


def pixart() -> Any:
    model = D.PixArtTransformer2DModel(**DIT, out_channels=8, cross_attention_dim=16, caption_channels=12)
    return model, {"hidden_states": rand(B, 4, 8, 8), "encoder_hidden_states": rand(B, 5, 12), "timestep": TIMES,
                   "added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}  # fmt: skip


def sd3() -> Any:
    model = D.SD3Transformer2DModel(
        **DIT, joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=12, out_channels=4,
        pos_embed_max_size=8, dual_attention_layers=(0,), qk_norm="rms_norm",
    )  # fmt: skip
    return model, {"hidden_states": rand(B, 4, 8, 8), "encoder_hidden_states": rand(B, 5, 16), "timestep": TIMES,
                   "pooled_projections": rand(B, 12)}  # fmt: skip


def flux() -> Any:
    model = D.FluxTransformer2DModel(
        patch_size=1, in_channels=4, **{**HEADS, "num_layers": 1}, num_single_layers=2, joint_attention_dim=16,
        pooled_projection_dim=12, guidance_embeds=True, axes_dims_rope=(2, 2, 4),
    )  # fmt: skip
    places = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0))
    return model, {"hidden_states": rand(B, 16, 4), "encoder_hidden_states": rand(B, 5, 16), "timestep": TIMES / 10,
                   "pooled_projections": rand(B, 12), "guidance": TIMES / 3, "img_ids": places,
                   "txt_ids": torch.zeros(5, 3)}  # fmt: skip


def vae() -> Any:
    return D.AutoencoderKL(**CODED, latent_channels=4), (rand(B, 3, 8, 8),)


MODELS = {f.__name__: f for f in (unet, unet_xl, unet_of_classes, dit, pixart, sd3, flux, vae)}


def made(name: str) -> Any:
    torch.manual_seed(0)
    model, batch = MODELS[name]()
    with torch.no_grad():
        for p in model.parameters():  # some begin at zero
            p.add_(0.05 * torch.randn(p.shape))
    return model.eval(), batch


def runs(batch):
    return lambda m: (m(**batch) if isinstance(batch, dict) else m(*batch)).sample


@pytest.mark.parametrize("name", MODELS)
def test_tenants_are_their_merged_weights_and_a_row_is_that_row_alone(name):
    model, batch = made(name)
    host = cw.Host(model)
    assert host.coverage("lora").share > 0.5 and "(language)" not in str(host.coverage("lora"))
    stir(host.add("t", "full", sites="*"), std=0.02)
    assert host.coverage("t").share == 1.0
    stir(host.add("u", "lora", rank=2), 1)
    stir(host.add("v", "lora", rank=2), 2)
    alone = same(host, runs(batch), ["t", None, "u"], lambda: made(name)[0])
    assert all((alone[n] - alone[None]).abs().max() > 1e-3 for n in "tu")
    other = cw.Host(made(name)[0])
    for i, n in enumerate("uv"):
        stir(other.add(n, "lora", rank=2), i + 1)
    same(other, runs(batch), ["u", "v", "u"])
    assert not other.model.forward.apart, "low-rank updates ran reader by reader"


@pytest.mark.parametrize("method", ["dora", "mos", "vera", "ia3", "oft", "bitfit", "vb-lora"])
@pytest.mark.parametrize("name", ["unet", "flux"])
def test_other_methods_train_are_saved_and_loaded(name, method, tmp_path):
    model, batch = made(name)
    host = cw.Host(model)
    stir(host.add("t", method, **small(method)))
    with host.route("t"):
        runs(batch)(model).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in host["t"].parameters())
    host.load("again", host.save("t", tmp_path / "t.safetensors"))
    with torch.no_grad():
        found = []
        for n in ("t", "again"):
            with host.route(n):
                found.append(runs(batch)(model))
    torch.testing.assert_close(found[0], found[1])
    same(host, runs(batch), ["t", None, "again"], lambda: made(name)[0])


def test_blocks_of_images_are_no_places_of_states():
    with pytest.raises(cw.CommonweightError, match="loreft reads sites of kind block"):
        cw.Host(made("unet")[0]).add("t", "loreft", rank=2)
    host = cw.Host(made("flux")[0])
    stir(host.add("t", "loreft", rank=2), std=0.3)
    same(host, runs(made("flux")[1]), ["t", None, "t"])


def adapter(model: Any, config: Any) -> None:
    model.add_adapter(config)
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if any(part in n for part in ("lora_", "hada_", "lokr_")):
                p.add_(torch.randn(p.shape, generator=g) * 0.1)


CONFIGS = {
    "lora": ("LoraConfig", {"lora_alpha": 5, "rank_pattern": {"to_q": 2}, "alpha_pattern": {"to_v": 7}}),
    "dora": ("LoraConfig", {"lora_alpha": 5, "use_dora": True}),
    "rslora": ("LoraConfig", {"lora_alpha": 5, "use_rslora": True}),
    "loha": ("LoHaConfig", {"alpha": 5}),
    "lokr": ("LoKrConfig", {"alpha": 5}),
    "lokr in factors": ("LoKrConfig", {"alpha": 5, "decompose_both": True}),
}


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("name", ["unet", "sd3"])
def test_a_file_of_one_model_that_diffusers_writes(name, kind, tmp_path):
    peft = pytest.importorskip("peft")
    theirs, batch = made(name)
    call, options = CONFIGS[kind]
    adapter(theirs, getattr(peft, call)(r=3, target_modules=["to_q", "to_v", "to_out.0"], **options))
    with torch.no_grad():
        want = runs(batch)(theirs)
    theirs.save_lora_adapter(tmp_path)
    host = cw.Host(made(name)[0])
    host.load_adapter(tmp_path, "t")
    with torch.no_grad():
        base = runs(batch)(host.model)
        with host.route("t"):
            got = runs(batch)(host.model)
    assert (want - base).abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name, pipeline", [("sd3", "StableDiffusion3Pipeline"), ("flux", "FluxPipeline")])
def test_a_file_of_a_pipeline(name, pipeline, tmp_path):
    peft = pytest.importorskip("peft")
    theirs, batch = made(name)
    config = peft.LoraConfig(r=3, lora_alpha=5, target_modules=["to_q", "to_v", "add_q_proj", "proj_out"])
    adapter(theirs, config)
    with torch.no_grad():
        want = runs(batch)(theirs)
    getattr(D, pipeline).save_lora_weights(
        tmp_path, transformer_lora_layers=peft.get_peft_model_state_dict(theirs),
        transformer_lora_adapter_metadata=json.loads(json.dumps(config.to_dict(), default=list)),
    )  # fmt: skip
    host = cw.Host(made(name)[0])
    host.load_adapter(tmp_path, "t")
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(runs(batch)(host.model), want, rtol=1e-4, atol=1e-4)


def test_kohyas_file_as_diffusers_reads_it(tmp_path):
    from safetensors.torch import save_file

    model, batch = made("unet")
    at = "down_blocks_1_attentions_0_transformer_blocks_0_"
    tensors = {}
    for module in (f"{at}attn1_to_q", f"{at}attn2_to_out_0", f"{at}ff_net_2"):
        layer = next(m for n, m in model.named_modules() if n.replace(".", "_") == module)
        out, inp = layer.weight.shape
        tensors |= {f"lora_unet_{module}.lora_down.weight": rand(2, inp) * 0.3,
                    f"lora_unet_{module}.lora_up.weight": rand(out, 2) * 0.3,
                    f"lora_unet_{module}.alpha": torch.tensor(1.0)}  # fmt: skip
    save_file(tensors, tmp_path / "k.safetensors")
    state, alphas = D.StableDiffusionPipeline.lora_state_dict(tmp_path / "k.safetensors")
    D.StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=model)
    with torch.no_grad():
        want = runs(batch)(model)
    host = cw.Host(made("unet")[0])
    host.load_adapter(tmp_path / "k.safetensors", "t")
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(runs(batch)(host.model), want, rtol=1e-4, atol=1e-4)


TENANTS = {
    "lora": ("lora", {"rank": 3, "alpha": 7, "ranks": (("*to_q", 2), ("*to_out.0", 5))}),
    "dora": ("dora", {"rank": 3, "alpha": 7}),
    "vera": ("vera", {"rank": 4}),
}


@pytest.mark.parametrize("kind", TENANTS)
@pytest.mark.parametrize("name, pipeline", [("unet", "StableDiffusionPipeline"), ("sd3", "StableDiffusion3Pipeline")])
def test_our_file_in_a_pipeline_of_diffusers(name, pipeline, kind, tmp_path):
    method, options = TENANTS[kind]
    model, batch = made(name)
    host = cw.Host(model)
    stir(host.add("t", method, sites="*.to_q|*.to_v|*.to_out.0", **options))
    with torch.no_grad():
        base = runs(batch)(host.model)
        with host.route("t"):
            want = runs(batch)(host.model)
    path = host.export("t", tmp_path / "t.safetensors", "diffusers")
    part = "unet" if name == "unet" else "transformer"
    theirs = made(name)[0]
    state, *more = getattr(D, pipeline).lora_state_dict(path, return_lora_metadata=True)
    metadata = more[-1]
    assert {k.split(".")[0] for k in state} == {part}
    theirs.load_lora_adapter(state, prefix=part, metadata=metadata)
    with torch.no_grad():
        torch.testing.assert_close(runs(batch)(theirs), want, rtol=1e-4, atol=1e-4)
        bare = made(name)[0]  # without the metadata: alpha is the rank everywhere
        bare.load_lora_adapter(state, prefix=part)
        torch.testing.assert_close(runs(batch)(bare), want, rtol=1e-4, atol=1e-4)
    assert (want - base).abs().max() > 1e-3
    back = cw.Host(made(name)[0])
    back.load_adapter(path, "b")
    with torch.no_grad(), back.route("b"):
        torch.testing.assert_close(runs(batch)(back.model), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["unet", "unet_xl"])
def test_our_kohyas_file_of_a_unet_as_diffusers_reads_it(name, tmp_path):
    model, batch = made(name)
    host = cw.Host(model)
    stir(host.add("t", "lora", rank=3, sites="*.to_q|*.conv1|*.proj_in|*.net.2"))
    with torch.no_grad(), host.route("t"):
        want = runs(batch)(host.model)
    path = host.export("t", tmp_path / "t.safetensors", "kohya")
    with safe_open(path, "pt") as f:  # kohya's scripts know SDXL by Stability's names
        assert any(k.startswith("lora_unet_input_blocks_3_1_") for k in f.keys()) == (name == "unet_xl")
    theirs = made(name)[0]
    state, alphas = D.StableDiffusionPipeline.lora_state_dict(path, unet_config=theirs.config)
    D.StableDiffusionPipeline.load_lora_into_unet(state, network_alphas=alphas, unet=theirs)
    with torch.no_grad():
        torch.testing.assert_close(runs(batch)(theirs), want, rtol=1e-4, atol=1e-4)
    back = cw.Host(made(name)[0])
    back.load_adapter(path, "b")
    with torch.no_grad(), back.route("b"):
        torch.testing.assert_close(runs(batch)(back.model), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_our_kohyas_file_of_a_transformer(name, tmp_path):
    """diffusers 0.42.1 reads it of Flux, and a single block's first layer there of one width alone."""
    sites = "*.attn.*|*.ff.*|*.ff_context.*|*norm1*.linear|*.proj_out|*.attn2.*|pos_embed.proj|norm_out.linear"
    model, batch = made(name)
    host = cw.Host(model)
    stir(host.add("t", "lora", rank=3, alpha=7, ranks=(("*to_k", 2), ("*to_v", 5)), sites=sites))
    stir(
        host.add(
            "there", "lora", rank=3, sites="transformer_blocks.*|*.norm.linear|single_transformer_blocks.*.proj_out"
        )
    )
    for tenant in ("t", "there"):
        with torch.no_grad(), host.route(tenant):
            want = runs(batch)(host.model)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            path = host.export(tenant, tmp_path / f"{tenant}.safetensors", "kohya")
        assert any("diffusers 0.42.1 leaves out what is in no block" in str(w.message) for w in told) == (
            name == "flux" and tenant == "t"
        )
        back = cw.Host(made(name)[0])
        back.load_adapter(path, "b")
        with torch.no_grad(), back.route("b"):
            torch.testing.assert_close(runs(batch)(back.model), want, rtol=1e-4, atol=1e-4)
    if name == "flux":
        theirs = made(name)[0]
        state = D.FluxPipeline.lora_state_dict(path)
        D.FluxPipeline.load_lora_into_transformer(state, network_alphas=None, transformer=theirs)
        with torch.no_grad():
            torch.testing.assert_close(runs(batch)(theirs), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_our_file_of_a_text_encoder_in_a_pipeline(format, tmp_path):
    from tests.formats.test_kohya import IDS, clip

    host = cw.Host(clip())
    ranks = (("*.fc1", 2),) if format == "diffusers" else ()
    stir(host.add("t", "lora", rank=3, alpha=7, ranks=ranks, sites="*_proj|*.fc1"))
    path = host.export("t", tmp_path / "t.safetensors", format)
    theirs = clip()
    state, alphas, metadata = D.StableDiffusionPipeline.lora_state_dict(path, return_lora_metadata=True)
    D.StableDiffusionPipeline.load_lora_into_text_encoder(
        state, network_alphas=alphas, text_encoder=theirs, prefix="text_encoder", metadata=metadata
    )
    with torch.no_grad(), host.route("t"):
        want = host.model(IDS).last_hidden_state
        torch.testing.assert_close(theirs(IDS).last_hidden_state, want, rtol=1e-4, atol=1e-4)
