"""Flux and SD3 in the names that kohya's scripts train them by: layers in one there, several in diffusers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import commonweight as cw
from commonweight.formats.changes import Change
from commonweight.formats.kohya import Naming, joined, kohya, module_of, read

D, MLP = 8, 32
FLUX = {
    **{f"transformer_blocks.1.attn.{n}": (D, D) for n in ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj",
                                                          "add_v_proj", "to_out.0", "to_add_out")},
    "transformer_blocks.1.ff.net.0.proj": (MLP, D), "transformer_blocks.1.ff.net.2": (D, MLP),
    "transformer_blocks.1.ff_context.net.0.proj": (MLP, D), "transformer_blocks.1.ff_context.net.2": (D, MLP),
    "transformer_blocks.1.norm1.linear": (6 * D, D), "transformer_blocks.1.norm1_context.linear": (6 * D, D),
    **{f"single_transformer_blocks.12.attn.{n}": (D, D) for n in ("to_q", "to_k", "to_v")},
    "single_transformer_blocks.12.proj_mlp": (MLP, D), "single_transformer_blocks.12.proj_out": (D, D + MLP),
    "single_transformer_blocks.12.norm.linear": (3 * D, D), "x_embedder": (D, 4), "context_embedder": (D, 6),
    "time_text_embed.timestep_embedder.linear_1": (D, 4), "time_text_embed.guidance_embedder.linear_2": (D, D),
    "time_text_embed.text_embedder.linear_1": (D, 5), "norm_out.linear": (2 * D, D), "proj_out": (4, D),
}  # fmt: skip
SD3 = {
    **{n: s for n, s in FLUX.items() if n.startswith("transformer_blocks")},
    **{f"transformer_blocks.1.attn2.{n}": (D, D) for n in ("to_q", "to_k", "to_v", "to_out.0")},
    "transformer_blocks.2.norm1_context.linear": (2 * D, D), "pos_embed.proj": (D, 16), "proj_out": (4, D),
    "time_text_embed.timestep_embedder.linear_2": (D, D), "norm_out.linear": (2 * D, D), "context_embedder": (D, 6),
}  # fmt: skip
QKV = ["attn.to_q", "attn.to_k", "attn.to_v"]
ADDED = ["attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"]
DOUBLE = {
    "img_attn_qkv": QKV, "txt_attn_qkv": ADDED, "img_attn_proj": ["attn.to_out.0"],
    "txt_attn_proj": ["attn.to_add_out"],
    "img_mlp_0": ["ff.net.0.proj"], "img_mlp_2": ["ff.net.2"], "txt_mlp_0": ["ff_context.net.0.proj"],
    "txt_mlp_2": ["ff_context.net.2"], "img_mod_lin": ["norm1.linear"], "txt_mod_lin": ["norm1_context.linear"],
}  # fmt: skip
JOINT = {
    "x_block_attn_qkv": QKV, "context_block_attn_qkv": ADDED, "x_block_attn_proj": ["attn.to_out.0"],
    "context_block_attn_proj": ["attn.to_add_out"], "x_block_attn2_qkv": ["attn2.to_q", "attn2.to_k", "attn2.to_v"],
    "x_block_attn2_proj": ["attn2.to_out.0"], "x_block_mlp_fc1": ["ff.net.0.proj"], "x_block_mlp_fc2": ["ff.net.2"],
    "context_block_mlp_fc1": ["ff_context.net.0.proj"], "context_block_mlp_fc2": ["ff_context.net.2"],
    "x_block_adaLN_modulation_1": ["norm1.linear"], "context_block_adaLN_modulation_1": ["norm1_context.linear"],
}  # fmt: skip
FLUX_FILE = {
    **{f"double_blocks_1_{k}": [f"transformer_blocks.1.{n}" for n in v] for k, v in DOUBLE.items()},
    "single_blocks_12_linear1": [f"single_transformer_blocks.12.{n}" for n in (*QKV, "proj_mlp")],
    "single_blocks_12_linear2": ["single_transformer_blocks.12.proj_out"],
    "single_blocks_12_modulation_lin": ["single_transformer_blocks.12.norm.linear"],
    "img_in": ["x_embedder"], "txt_in": ["context_embedder"], "final_layer_linear": ["proj_out"],
    "time_in_in_layer": ["time_text_embed.timestep_embedder.linear_1"],
    "guidance_in_out_layer": ["time_text_embed.guidance_embedder.linear_2"],
    "vector_in_in_layer": ["time_text_embed.text_embedder.linear_1"],
    "final_layer_adaLN_modulation_1": ["norm_out.linear"],
}  # fmt: skip
SD3_FILE = {
    **{f"joint_blocks_1_{k}": [f"transformer_blocks.1.{n}" for n in v] for k, v in JOINT.items()},
    "joint_blocks_2_context_block_adaLN_modulation_1": ["transformer_blocks.2.norm1_context.linear"],
    "x_embedder_proj": ["pos_embed.proj"], "context_embedder": ["context_embedder"],
    "t_embedder_mlp_2": ["time_text_embed.timestep_embedder.linear_2"], "final_layer_linear": ["proj_out"],
    "final_layer_adaLN_modulation_1": ["norm_out.linear"],
}  # fmt: skip
MODELS = {"flux": (FLUX, FLUX_FILE), "sd3": (SD3, SD3_FILE)}
TURNED = "final_layer_adaLN_modulation_1", "joint_blocks_2_context_block_adaLN_modulation_1"


def rand(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def file(path: Path, kind: str, more: str = "") -> tuple[Path, dict[str, Tensor]]:
    """(the file, the change of each of its modules). more: "m" for magnitudes, "kr" for LoKr."""
    sites, modules = MODELS[kind]
    tensors, deltas = {}, {}
    for name, layers in modules.items():
        out, inp = sum(sites[n][0] for n in layers), sites[layers[0]][1]
        start = f"lora_unet_{name}"
        if more == "kr":
            a, b = rand(2, 1), rand(out // 2, inp)
            tensors |= {f"{start}.lokr_w1": a, f"{start}.lokr_w2": b}
            deltas[name] = torch.kron(a, b)
            continue
        down, up = rand(2, inp), rand(out, 2)
        tensors |= {f"{start}.lora_down.weight": down, f"{start}.lora_up.weight": up}
        tensors[f"{start}.alpha"] = torch.tensor(1.0)
        deltas[name] = 0.5 * up @ down
        if more == "m":
            tensors[f"{start}.dora_scale"] = rand(out, 1).abs()
    save_file(tensors, path / "a.safetensors")
    return path / "a.safetensors", deltas


@pytest.mark.parametrize("more", ["", "kr"])
@pytest.mark.parametrize("kind", MODELS)
def test_rows_of_a_layer_go_to_the_layers_that_diffusers_makes_of_it(kind, more, tmp_path):
    sites, modules = MODELS[kind]
    path, deltas = file(tmp_path, kind, more)
    found = read(path, Naming(sites, [*sites]), lambda n: torch.zeros(sites[n]))
    assert set(found) == {n for layers in modules.values() for n in layers}
    for name, layers in modules.items():
        delta = torch.cat([*deltas[name].chunk(2)][::-1]) if name in TURNED else deltas[name]
        for layer, want in zip(layers, delta.split([sites[n][0] for n in layers])):
            c = found[layer]
            got = c.delta if c.A is None or c.B is None else c.scale * c.B @ c.A
            torch.testing.assert_close(got, want)


def test_magnitudes_and_weights_are_cut_as_the_rows_are(tmp_path):
    path, _ = file(tmp_path, "flux", "m")
    weights = {n: rand(*s) for n, s in FLUX.items()}
    found = read(path, Naming(FLUX, [*FLUX]), weights.__getitem__)
    assert all(found[n].m is not None and len(found[n].m) == FLUX[n][0] for n in FLUX)  # type: ignore[arg-type]
    gains = {"lora_unet_double_blocks_1_img_attn_qkv.weight": rand(3 * D, 1).flatten(),
             "lora_unet_double_blocks_1_img_attn_qkv.on_input": torch.tensor(0)}  # fmt: skip
    save_file(gains, tmp_path / "b.safetensors")
    found = read(tmp_path / "b.safetensors", Naming(FLUX, [*FLUX]), weights.__getitem__)
    gain = gains["lora_unet_double_blocks_1_img_attn_qkv.weight"][D : 2 * D]
    name = "transformer_blocks.1.attn.to_k"
    torch.testing.assert_close(found[name].delta, weights[name] * gain[:, None])


@pytest.mark.parametrize("start", ["diffusion_model.double_blocks.1.img_attn.qkv", "double_blocks.1.img_attn.qkv"])
def test_the_same_names_with_dots(start, tmp_path):
    down, up = rand(2, D), rand(3 * D, 2)
    save_file({f"{start}.lora_A.weight": down, f"{start}.lora_B.weight": up}, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors", Naming(FLUX, [*FLUX]), lambda n: torch.zeros(FLUX[n]))
    torch.testing.assert_close(found["transformer_blocks.1.attn.to_v"].B, up[2 * D :])


def test_another_width_and_another_model_are_told(tmp_path):
    path, _ = file(tmp_path, "flux")
    wide = {n: ((out * 2, inp) if n.endswith("to_q") else (out, inp)) for n, (out, inp) in FLUX.items()}
    with pytest.raises(cw.CommonweightError, match=r"has 24 rows; .*to_q.* have 16 \+ 8 \+ 8: made for another model"):
        read(path, Naming(wide, [*wide]), lambda n: torch.zeros(wide[n]))
    with pytest.raises(cw.CommonweightError, match="made for another model"):
        read(path, Naming(SD3, [*SD3]), lambda n: torch.zeros(SD3[n]))


WAN = {
    **{f"blocks.11.attn{k}.{n}": (D, D) for k in (1, 2) for n in ("to_q", "to_k", "to_v", "to_out.0")},
    "blocks.11.attn2.add_k_proj": (D, D), "blocks.11.attn2.add_v_proj": (D, D), "blocks.11.ffn.net.0.proj": (MLP, D),
    "blocks.11.ffn.net.2": (D, MLP), "proj_out": (4, D), "condition_embedder.time_proj": (6 * D, D),
    "condition_embedder.text_embedder.linear_1": (D, 6), "condition_embedder.time_embedder.linear_2": (D, D),
    "condition_embedder.image_embedder.ff.net.0.proj": (D, 5), "condition_embedder.image_embedder.ff.net.2": (D, D),
}  # fmt: skip
ITS_OWN = [
    *(f"blocks.11.{a}.{n}" for a in ("self_attn", "cross_attn") for n in "qkvo"), "blocks.11.cross_attn.k_img",
    "blocks.11.cross_attn.v_img", "blocks.11.ffn.0", "blocks.11.ffn.2", "head.head", "time_projection.1",
    "text_embedding.0", "time_embedding.2", "img_emb.proj.1", "img_emb.proj.3",
]  # fmt: skip
NAMES_OF_WAN = dict(zip(ITS_OWN, WAN))


@pytest.mark.parametrize("key", [
    lambda n, f: f"diffusion_model.{n}.lora_{f}.weight", lambda n, f: f"{n}.lora_{f}.default.weight",
    lambda n, f: f"lora_unet_{n.replace('.', '_')}.lora_{'down' if f == 'A' else 'up'}.weight",
])  # fmt: skip
def test_wan_in_its_own_names(key, tmp_path):
    """As diffusers' lora_conversion_utils.py has them."""
    factors = {n: (rand(2, WAN[t][1]), rand(WAN[t][0], 2)) for n, t in NAMES_OF_WAN.items()}
    save_file({key(n, f): m for n, ab in factors.items() for f, m in zip("AB", ab)}, tmp_path / "a.safetensors")
    found = read(tmp_path / "a.safetensors", Naming(WAN, [*WAN]), lambda n: torch.zeros(WAN[n]))
    assert set(found) == set(WAN)
    for name, (A, B) in factors.items():
        c = found[NAMES_OF_WAN[name]]
        assert c.A is not None and c.B is not None and c.scale == 1
        torch.testing.assert_close(c.B @ c.A, B @ A)


CLASSES = {"flux": ("FluxTransformer2DModel", FLUX), "sd3": ("SD3Transformer2DModel", SD3),
           "wan": ("WanTransformer3DModel", WAN)}  # fmt: skip


def tenant(sites: dict[str, tuple[int, int]], m: bool = False) -> dict[str, Change]:
    """Ranks from 1 to 3, one layer after another."""
    out = {}
    for i, (name, (rows, inp)) in enumerate(sites.items()):
        g, r = torch.Generator().manual_seed(i), 1 + i % 3
        A, B = torch.randn(r, inp, generator=g), torch.randn(rows, r, generator=g)
        out[name] = Change(A, B, 0.5, torch.rand(rows, generator=g) if m else None)
    return out


def there_and_back(changes: dict[str, Change], kind: str, path: Path) -> tuple[dict[str, Change], list[str]]:
    """(what our reader makes of what is written, the file's modules)."""
    name, sites = CLASSES[kind]
    found = joined(changes, name, sites)
    kernels = {module_of(n, name): (2, 2) for n in changes if n == "pos_embed.proj"}
    (path / "k.safetensors").write_bytes(kohya(found, "unet", kernels))
    return read(path / "k.safetensors", Naming(sites, [*sites]), lambda n: torch.zeros(sites[n])), [*found]


@pytest.mark.parametrize("m", [False, True])
@pytest.mark.parametrize("kind", CLASSES)
def test_stacked_factors_are_the_layers_own(kind, m, tmp_path):
    sites = CLASSES[kind][1]
    changes = tenant(sites, m)
    back, modules = there_and_back(changes, kind, tmp_path)
    assert set(back) == set(sites)
    if kind != "wan":
        assert set(modules) == set(MODELS[kind][1])
    for name, c in changes.items():
        got = back[name]
        torch.testing.assert_close(got.scale * got.B @ got.A, 0.5 * c.B @ c.A)  # type: ignore[operator]
        assert (got.m is None) == (not m) and (c.m is None or torch.equal(got.m, c.m))  # type: ignore[arg-type]


def test_the_rank_is_the_sum_or_that_of_a_shared_factor_and_some_may_be_left_out():
    kind, sites = CLASSES["flux"]
    at = {n: s for n, s in sites.items() if n in [f"transformer_blocks.1.{q}" for q in (QKV[0], QKV[2])]}
    changes = tenant(at)
    (one,) = joined(changes, kind, sites).values()
    assert one.A.shape == (3, D) and one.B.shape == (3 * D, 3)  # type: ignore[union-attr]
    assert not one.B[D : 2 * D].any() and not one.B[:D, 1:].any() and not one.B[2 * D :, :1].any()  # type: ignore[index]
    A = torch.ones(2, D)
    (one,) = joined({n: Change(A, torch.ones(D, 2)) for n in at}, kind, sites).values()
    assert one.A.shape == (2, D) and not one.B[D : 2 * D].any()  # type: ignore[union-attr, index]


def test_what_kohya_has_no_name_for_is_told():
    kind, sites = CLASSES["flux"]
    query, bias = "transformer_blocks.1.attn.to_q", torch.ones(D)
    for changes, says in (
        ({"other.layer": Change(torch.ones(1, D), torch.ones(D, 1))}, "no name for this layer of a FluxTransformer2DM"),
        ({query: tenant(sites, True)[query]}, r"img_attn_qkv: magnitudes are .* does not change .*to_k"),
        ({query: tenant(sites)[query]._replace(bias=bias)}, r"to_q: the tenant changes its bias, which kohya's LoRA"),
    ):
        with pytest.raises(cw.CommonweightError, match=says):
            joined(changes, kind, sites)
    with pytest.raises(cw.CommonweightError, match=r"has the rows of transformer_blocks_1_attn_to_k too"):
        joined({query: tenant(sites)[query]}, kind, {query: sites[query]})


def test_diffusers_takes_the_blocks_apart():
    """Its converter knows Flux of one width alone."""
    convert = pytest.importorskip("diffusers.loaders.lora_conversion_utils")._convert_kohya_flux_lora_to_diffusers
    wide, mlp = 3072, 12288
    layers = {"attn.to_q": wide, "attn.to_k": wide, "attn.to_v": wide, "proj_mlp": mlp}
    sites = {f"single_transformer_blocks.4.{n}": (out, wide) for n, out in layers.items()}
    sites |= {f"transformer_blocks.3.attn.add_{n}_proj": (wide, wide) for n in "qkv"}
    for same in (False, True):  # where all ranks are one it finds the blocks by itself
        changes = tenant(sites)
        if same:
            changes = {n: c._replace(A=rand(2, wide), B=rand(len(c.B), 2)) for n, c in changes.items()}  # type: ignore[arg-type]
            changes = {n: c._replace(A=c.A + i) for i, (n, c) in enumerate(changes.items())}  # type: ignore[operator]
        tensors = {}
        for module, c in joined(changes, "FluxTransformer2DModel", sites).items():
            at = f"lora_unet_{module}"
            tensors |= {
                f"{at}.lora_down.weight": c.A,
                f"{at}.lora_up.weight": c.B,
                f"{at}.alpha": torch.tensor(len(c.A)),
            }  # type: ignore[arg-type]
        found = convert(tensors)
        assert len(found) == 2 * len(sites)
        for name, c in changes.items():
            A, B = (found[f"transformer.{name}.lora_{f}.weight"] for f in "AB")
            assert len(A) == 2 if same else len(A) >= len(c.A)  # type: ignore[arg-type]
            x = rand(wide, 3)
            torch.testing.assert_close(B @ (A @ x), 0.5 * c.B @ (c.A @ x), rtol=1e-3, atol=1e-2)  # type: ignore[operator]
