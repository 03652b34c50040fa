"""LoRA files of kohya's scripts, LyCORIS and diffusers: by their layouts, and by the tools where installed."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch
import transformers as tf
from safetensors import safe_open
from safetensors.torch import save_file

import commonweight as cw
from commonweight.formats.kohya import keys, modules
from commonweight.formats.peft import common
from tests.laws.subjects import stir

Q, MLP = "text_model_encoder_layers_0_self_attn_q_proj", "text_model_encoder_layers_1_mlp_fc1"


def clip(width=32):
    torch.manual_seed(0)
    return tf.CLIPTextModel(
        tf.CLIPTextConfig(
            vocab_size=61, hidden_size=width, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=16, projection_dim=16,
        )
    ).eval()  # fmt: skip


IDS = torch.arange(12).view(2, 6)


@pytest.fixture
def host():
    return cw.Host(clip())


def site(host, end):
    return next(s.name for s in host.base.every if s.name.endswith(end))


def rand(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape))) * 0.3


def lora(prefix="lora_te_", alpha: float | None = 2.0, width=32):
    out = {
        f"{prefix}{Q}.lora_down.weight": rand(4, width), f"{prefix}{Q}.lora_up.weight": rand(width, 4),
        f"{prefix}{MLP}.lora_down.weight": rand(4, width), f"{prefix}{MLP}.lora_up.weight": rand(64, 4),
    }  # fmt: skip
    if alpha is not None:
        out |= {f"{prefix}{m}.alpha": torch.tensor(alpha) for m in (Q, MLP)}
    return out


def put(tmp_path, tensors, metadata=None):
    save_file(tensors, tmp_path / "a.safetensors", metadata)
    return tmp_path / "a.safetensors"


@pytest.mark.parametrize("alpha, scale", [(2.0, 0.5), (None, 1.0)])
def test_kohyas_lora_with_and_without_alpha(host, tmp_path, alpha, scale):
    tensors = lora(alpha=alpha)
    tenant = host.load_adapter(put(tmp_path, tensors), "t")
    assert (tenant.method.name, tenant.config.rank, tenant.config.alpha) == ("lora", 4, 4 * scale)
    q = site(host, "0.self_attn.q_proj")
    want = host.weight(q) + scale * tensors[f"lora_te_{Q}.lora_up.weight"] @ tensors[f"lora_te_{Q}.lora_down.weight"]
    torch.testing.assert_close(host.merged("t")[f"{q}.weight"], want)


def test_the_part_of_this_model_is_taken_and_the_other_told(host, tmp_path):
    unet = {"lora_unet_mid_block_attentions_0_proj_in.lora_down.weight": rand(2, 8)}
    unet |= {"lora_unet_mid_block_attentions_0_proj_in.lora_up.weight": rand(8, 2)}
    path = put(tmp_path, lora() | unet)
    with pytest.warns(UserWarning, match=r"left out: the part unet \(1 layer\), for a host on that model"):
        assert len(host.load_adapter(path, "t").plan.uses) == 2


def test_of_two_text_encoders_the_one_that_fits(host, tmp_path):
    path = put(tmp_path, lora("lora_te1_") | lora("lora_te2_", width=48))
    with pytest.warns(UserWarning, match=r"the part te2 \(2 layers\)"):
        host.load_adapter(path, "t")
    path = put(tmp_path, lora("lora_te1_") | lora("lora_te2_"))
    with pytest.raises(cw.CommonweightError, match=r"te1, te2 all have layers of this base; say which with part="):
        host.load_adapter(path, "u")
    with pytest.warns(UserWarning, match="the part te1"):
        host.load_adapter(path, "u", part="te2")
    with pytest.raises(cw.CommonweightError, match=r"holds no part 'te3'; it has te1, te2"):
        host.load_adapter(path, "v", part="te3")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(f"lora_te_{Q}.lora_up.weight"), "q_proj: has one factor of two"),
        (lambda t: t.update({f"lora_te_{Q}.lora_up.weight": torch.ones(32, 5)}), "q_proj: factors of"),
        (
            lambda t: t.update({f"lora_te_{Q}.lora_down.weight": torch.ones(4, 30)}),
            r"\(32, 30\), this base has \(32, 32\)",
        ),
        (lambda t: t.update({f"lora_te_{Q}.alpha": torch.ones(3)}), r"alpha is \(3,\); wanted one number"),
        (lambda t: t.update({"lora_te_x_9.lora_up.weight": torch.ones(3, 1)}), "x_9: this base has no such layer"),
        (lambda t: t.update({"lora_te_x.what": torch.ones(3)}), "lora_te_x.what is no key"),
        (lambda t: [t.pop(k) for k in [*t] if not k.endswith("alpha")], "alpha are the parts of no adapter"),
    ],
)
def test_what_is_wrong_is_told(host, tmp_path, change, message):
    tensors = lora()
    change(tensors)
    path = put(tmp_path, tensors)
    with pytest.raises(cw.CommonweightError, match=message) as e:
        host.load_adapter(path, "t")
    assert str(path) in str(e.value) and "t" not in host


def test_another_model_is_named_as_such(tmp_path):
    from tests.models import make

    with pytest.raises(cw.CommonweightError, match=r"made for another model: none of its layers is in this base"):
        cw.Host(make("gpt2")[0]).load_adapter(put(tmp_path, lora()), "t")


def test_convolutions_are_matrices_with_their_kernels_in_a_row():
    down, mid, up = rand(3, 5, 1, 1), rand(3, 3, 2, 2), rand(7, 3, 1, 1)
    got = modules.change("x", {"lora_down.weight": down, "lora_mid.weight": mid, "lora_up.weight": up}, lambda: down)
    assert got.A is not None and got.B is not None
    want = torch.einsum("om,mnhw,ni->oihw", up[:, :, 0, 0], mid, down[:, :, 0, 0])
    torch.testing.assert_close((got.B @ got.A).view(7, 5, 2, 2), want)
    w1, w2 = rand(2, 3), rand(4, 5, 3, 3)
    got = modules.change("x", {"lokr_w1": w1, "lokr_w2": w2}, lambda: down)
    kron = torch.kron(w1[:, :, None, None], w2).flatten(1)
    torch.testing.assert_close(got.delta if got.delta is not None else got.B @ got.A, kron)  # type: ignore[operator]


@pytest.mark.parametrize("r, method", [(2, "lora"), (16, "full")])
def test_loha_and_lokr_have_factors_where_these_are_smaller(host, tmp_path, r, method):
    at = f"lora_te_{MLP}"
    parts = {"w1_a": (64, r), "w1_b": (r, 32), "w2_a": (64, r), "w2_b": (r, 32)}
    loha = {f"{at}.hada_{k}": rand(*s, seed=i) for i, (k, s) in enumerate(parts.items())}
    tenant = host.load_adapter(put(tmp_path, loha | {f"{at}.alpha": torch.tensor(3.0)}), "h")
    assert tenant.method.name == method and (method == "full" or tenant.config.rank == r * r)
    w = [loha[f"{at}.hada_{k}"] for k in parts]
    fc = site(host, "1.mlp.fc1")
    got = host.merged("h")[f"{fc}.weight"] - host.weight(fc)
    torch.testing.assert_close(got, 3 / r * (w[0] @ w[1]) * (w[2] @ w[3]), rtol=1e-4, atol=1e-4)
    lokr = {f"{at}.lokr_w1": rand(4, 2), f"{at}.lokr_w2_a": rand(16, r), f"{at}.lokr_w2_b": rand(r, 16)}
    tenant = host.load_adapter(put(tmp_path, lokr | {f"{at}.alpha": torch.tensor(3.0)}), "k")
    assert tenant.method.name == method and (method == "full" or tenant.config.rank == 2 * r)
    want = 3 / r * torch.kron(lokr[f"{at}.lokr_w1"], lokr[f"{at}.lokr_w2_a"] @ lokr[f"{at}.lokr_w2_b"])
    torch.testing.assert_close(host.merged("k")[f"{fc}.weight"] - host.weight(fc), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", [(32, 1), (1, 32)])
def test_dora_of_rows_and_of_columns(host, tmp_path, shape):
    m = rand(*shape).abs() + 0.5
    tensors = {k: v for k, v in lora().items() if Q in k} | {f"lora_te_{Q}.dora_scale": m}
    tenant = host.load_adapter(put(tmp_path, tensors), "t")
    assert tenant.method.name == ("dora" if shape[1] == 1 else "full")
    q = site(host, "0.self_attn.q_proj")
    w = host.weight(q) + 0.5 * tensors[f"lora_te_{Q}.lora_up.weight"] @ tensors[f"lora_te_{Q}.lora_down.weight"]
    want = w * m / w.norm(dim=1 if shape[1] == 1 else 0, keepdim=True)
    torch.testing.assert_close(host.merged("t")[f"{q}.weight"], want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("input_blocks_1_0_in_layers_2", "down_blocks_0_resnets_0_conv1"),
        ("input_blocks_3_0_op", "down_blocks_0_downsamplers_0_conv"),
        (
            "input_blocks_4_1_transformer_blocks_0_attn1_to_q",
            "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q",
        ),
        ("input_blocks_8_0_skip_connection", "down_blocks_2_resnets_1_conv_shortcut"),
        ("middle_block_1_proj_in", "mid_block_attentions_0_proj_in"),
        ("middle_block_2_out_layers_3", "mid_block_resnets_1_conv2"),
        ("output_blocks_2_2_conv", "up_blocks_0_upsamplers_0_conv"),
        ("output_blocks_2_1_conv", "up_blocks_0_upsamplers_0_conv"),
        ("output_blocks_5_1_proj_out", "up_blocks_1_attentions_2_proj_out"),
        ("output_blocks_0_0_emb_layers_1", "up_blocks_0_resnets_0_time_emb_proj"),
        ("down_blocks_0_resnets_0_conv1", "down_blocks_0_resnets_0_conv1"),
    ],
)
def test_names_of_stabilitys_unet(name, wanted):
    assert keys.diffusers_name(name, 2) == wanted


@pytest.mark.parametrize(
    "key, wanted",
    [
        ("unet.a.attn1.to_q.lora_A.weight", ("unet", "a.attn1.to_q", "lora_down.weight")),
        ("text_encoder_2.a.q_proj.lora.up.weight", ("text_encoder_2", "a.q_proj", "lora_up.weight")),
        ("text_encoder.a.q_proj.lora_linear_layer.down.weight", ("text_encoder", "a.q_proj", "lora_down.weight")),
        ("unet.a.attn1.processor.to_out_lora.up.weight", ("unet", "a.attn1.to_out.0", "lora_up.weight")),
        ("transformer.x.lora_magnitude_vector", ("transformer", "x", "dora_scale")),
    ],
)
def test_keys_of_diffusers_in_all_its_ages(key, wanted):
    assert keys.split(key) == wanted


def test_alpha_in_diffusers_metadata(host, tmp_path):
    tensors = {
        f"text_encoder.text_model.encoder.layers.0.self_attn.{n}.lora_{f}.weight": rand(*s)
        for n in ("q_proj", "v_proj") for f, s in (("A", (4, 32)), ("B", (32, 4)))
    }  # fmt: skip
    about = {"text_encoder.r": 4, "text_encoder.lora_alpha": 8, "text_encoder.alpha_pattern": {"v_proj": 2}}
    tenant = host.load_adapter(put(tmp_path, tensors, {"lora_adapter_metadata": json.dumps(about)}), "t")
    assert {u.site.rsplit(".", 1)[-1]: u.bind.scale for u in tenant.plan.uses} == {"q_proj": 2.0, "v_proj": 0.5}


ALGORITHMS = ["lora", "locon", "loha", "lokr", "full", "glora", "ia3", "diag-oft", "dora", "loha-dora", "lokr-small"]


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_lycoris_itself_gives_the_same(tmp_path, algorithm):
    lycoris = pytest.importorskip("lycoris")
    options = {"dora": {"algo": "lora", "dora_wd": True}, "loha-dora": {"algo": "loha", "dora_wd": True}}.get(
        algorithm, {"algo": algorithm.split("-small")[0]}
    )
    dim = 2 if algorithm == "lokr-small" else 4
    theirs = clip()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        lycoris.LycorisNetwork.apply_preset({"target_module": ["CLIPAttention", "CLIPMLP"]})
        net = lycoris.create_lycoris(theirs, 1.0, linear_dim=dim, linear_alpha=3, factor=4, **options)
        net.apply_to()
        g = torch.Generator().manual_seed(4)
        with torch.no_grad():
            for p in net.parameters():
                p += torch.randn(p.shape, generator=g) * 0.05
            want = theirs(IDS).last_hidden_state
        net.save_weights(str(tmp_path / "a.safetensors"), torch.float32, {})
    host = cw.Host(clip())
    host.load_adapter(tmp_path / "a.safetensors", "t")
    with torch.no_grad():
        base = host.model(IDS).last_hidden_state
        with host.route("t"):
            got = host.model(IDS).last_hidden_state
    assert (got - base).abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_diffusers_itself_gives_the_same(tmp_path):
    diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")

    def unet() -> Any:
        torch.manual_seed(0)
        return diffusers.UNet2DConditionModel(
            sample_size=8, in_channels=4, out_channels=4, layers_per_block=1, block_out_channels=(8, 16),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=16, attention_head_dim=4,
            norm_num_groups=4,
        ).eval()  # fmt: skip

    theirs, x, text = unet(), rand(2, 4, 8, 8), rand(2, 5, 16)
    config = peft.LoraConfig(
        r=3, lora_alpha=6, target_modules=["to_q", "to_v", "to_out.0", "ff.net.2", "conv1", "conv_in"]
    )
    theirs.add_adapter(config)
    g = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for n, p in theirs.named_parameters():
            if "lora_" in n:
                p += torch.randn(p.shape, generator=g) * 0.1
        want = theirs(x, 3, text).sample
    state = peft.get_peft_model_state_dict(theirs)
    diffusers.StableDiffusionPipeline.save_lora_weights(
        tmp_path, unet_lora_layers=state, unet_lora_adapter_metadata=config.to_dict()
    )
    host = cw.Host(unet())
    host.load_adapter(tmp_path, "t")  # a folder that holds one file
    with torch.no_grad():
        base = host.model(x, 3, text).sample
        with host.route("t"):
            got = host.model(x, 3, text).sample
    assert (got - base).abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_patterns_of_the_metadata_are_regular_expressions_as_peft_has_them(host, tmp_path):
    """diffusers writes a module of another rank as ``^name``, so that no other name ends alike."""
    tensors = {k.replace("lora_te_", ""): v for k, v in lora(alpha=None).items()}
    down, up = (tensors[f"{Q}.lora_{d}.weight"] for d in ("down", "up"))
    at = "text_encoder.text_model.encoder.layers.0.self_attn.q_proj"
    short = r"^text_model\.encoder\.layers\.0\.self_attn\.q_proj"
    about = {"text_encoder.r": 8, "text_encoder.lora_alpha": 8, "text_encoder.rank_pattern": {short: 4},
             "text_encoder.alpha_pattern": {short: 2}}  # fmt: skip
    path = put(tmp_path, {f"{at}.lora_A.weight": down, f"{at}.lora_B.weight": up},
               {"lora_adapter_metadata": json.dumps(about)})  # fmt: skip
    host.load_adapter(path, "t")
    q = site(host, "0.self_attn.q_proj")
    torch.testing.assert_close(host.merged("t")[f"{q}.weight"], host.weight(q) + 0.5 * up @ down)
    about["text_encoder.alpha_pattern"] = {"(": 2}
    path = put(tmp_path, {f"{at}.lora_A.weight": down, f"{at}.lora_B.weight": up},
               {"lora_adapter_metadata": json.dumps(about)})  # fmt: skip
    with pytest.raises(cw.CommonweightError, match=r"safetensors: metadata: the pattern '\(' is not a regular"):
        host.load_adapter(path, "u")


def test_a_pattern_of_the_metadata_has_a_second(monkeypatch):
    def late(*_, timeout):
        raise TimeoutError

    monkeypatch.setattr(common.regex, "fullmatch", late)
    with pytest.raises(
        cw.CommonweightError, match=r"adapter_config\.json: the pattern 'q_proj' takes too long at a\.q_pr"
    ):
        common.by_pattern({"q_proj": 4}, "a.q_proj", 8)


@pytest.mark.parametrize("method, options", [("lora", {"rank": 3, "alpha": 7}), ("dora", {"rank": 3}), ("vera", {})])
@pytest.mark.parametrize("format", ["diffusers", "kohya"])
def test_a_tenant_goes_out_and_comes_back(format, method, options, host, tmp_path):
    stir(host.add("t", method, sites="*.q_proj|*.out_proj|*.fc1", **options))
    path = host.export("t", tmp_path / "t.safetensors", format)
    with safe_open(path, "pt") as f:
        part = {"diffusers": "text_encoder.", "kohya": "lora_te_text_model_"}[format]
        assert all(k.startswith(part) for k in f.keys())
    back = cw.Host(clip())
    back.load_adapter(path, "b")
    for key, w in host.merged("t").items():
        torch.testing.assert_close(back.merged("b")[key], w, rtol=1e-5, atol=1e-6)
    with pytest.raises(cw.CommonweightError, match="is there already"):
        host.export("t", path, format)
    second = host.export(
        "t", tmp_path / "u.safetensors", format, part={"diffusers": "text_encoder_2"}.get(format, "te2")
    )
    with safe_open(second, "pt") as f:
        assert all(k.startswith(("text_encoder_2.", "lora_te2_")) for k in f.keys())


def test_queries_that_diffusers_would_leave_out_are_told(host, tmp_path):
    stir(host.add("t", "lora", rank=2, sites="*.q_proj|*.fc1"))
    with pytest.warns(UserWarning, match=r"q_proj and 1 more: diffusers 0.42.1 leaves out .*format='diffusers'"):
        host.export("t", tmp_path / "k", "kohya")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.export("t", tmp_path / "d", "diffusers")


def test_what_has_no_place_in_such_a_file_is_refused(host, tmp_path):
    from tests.models import make

    stir(host.add("b", "lora", rank=2, bias=True, sites="*.q_proj"))
    with pytest.raises(cw.CommonweightError, match=r"changes its bias, which kohya's LoRA cannot; use diffusers"):
        host.export("b", tmp_path / "a", "kohya")
    stir(host.add("i", "ia3", sites="*.q_proj"))
    with pytest.raises(cw.CommonweightError, match=r"ia3 is no product of two factors there.*tolerance=0.01"):
        host.export("i", tmp_path / "a", "diffusers")
    with pytest.raises(cw.CommonweightError, match=r"part='unet/..': wanted what kohya calls a model: unet, te"):
        host.export("b", tmp_path / "a", "kohya", part="unet/..")
    other = cw.Host(make("llama")[0])
    other.add("t", "lora", rank=2)
    with pytest.raises(cw.CommonweightError, match=r"LlamaForCausalLM: kohya holds adapters of a pipeline's models"):
        other.export("t", tmp_path / "a", "kohya")
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    "name, wanted, plain",
    [
        ("down_blocks_0_resnets_0_conv1", "input_blocks_1_0_in_layers_2", ()),
        ("down_blocks_0_downsamplers_0_conv", "input_blocks_3_0_op", ()),
        ("down_blocks_2_resnets_1_conv_shortcut", "input_blocks_8_0_skip_connection", ()),
        ("mid_block_attentions_0_proj_in", "middle_block_1_proj_in", ()),
        ("mid_block_resnets_1_conv2", "middle_block_2_out_layers_3", ()),
        ("up_blocks_0_upsamplers_0_conv", "output_blocks_2_2_conv", ()),
        ("up_blocks_0_upsamplers_0_conv", "output_blocks_2_1_conv", (0,)),
        ("up_blocks_1_attentions_2_proj_out", "output_blocks_5_1_proj_out", (0,)),
        ("up_blocks_0_resnets_0_time_emb_proj", "output_blocks_0_0_emb_layers_1", ()),
        ("time_embedding_linear_1", "time_embedding_linear_1", ()),
    ],
)
def test_stabilitys_names_of_diffusers_layers(name, wanted, plain):
    assert keys.stability_name(name, 2, plain) == wanted
