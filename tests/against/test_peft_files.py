"""Adapter folders that PEFT wrote give the same outputs here, and those written here give the same outputs there."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import torch
from safetensors.torch import load_file

import commonweight as cw
from tests.laws.subjects import METHODS, can, small, stir
from tests.models import answer, make

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.filterwarnings("ignore")

SOME = {
    "llama": ["q_proj", "v_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "bert": ["query", "value", "intermediate.dense", "output.dense"],
    "t5": ["q", "v", "wi", "wo"],
}
NORMS = {"llama": ["input_layernorm"], "gpt2": ["ln_1", "ln_2"], "bert": ["LayerNorm"], "t5": ["layer_norm"]}
IN_FEED = {"llama": ["down_proj"], "gpt2": ["c_proj"], "bert": ["output.dense"], "t5": ["wo"]}
LINEAR_ONLY = (
    "road", "road_2", "road_4", "oft", "oft-share", "oft-exact", "coft", "oft-count", "boft", "loha", "lokr",
    "lokr-both", "hra", "miss", "c3a", "c3a-patterns", "delora", "olora", "olora-patterns",
)  # fmt: skip

CONFIGS = {
    "lora": lambda k: peft.LoraConfig(r=4, lora_alpha=6, target_modules=SOME[k]),
    "rslora": lambda k: peft.LoraConfig(r=4, lora_alpha=6, target_modules=SOME[k], use_rslora=True),
    "lora-patterns": lambda k: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=SOME[k], rank_pattern={SOME[k][0]: 2, f".*1.*{SOME[k][1]}": 3},
        alpha_pattern={SOME[k][1]: 5},
    ),
    "lora-all": lambda k: peft.LoraConfig(r=3, target_modules="all-linear"),
    "lora-regex": lambda k: peft.LoraConfig(r=3, target_modules=rf".*[01]\..*({'|'.join(SOME[k])})"),
    "lora-layers": lambda k: peft.LoraConfig(
        r=3, target_modules=SOME[k], layers_to_transform=[1],
        layers_pattern={"llama": "layers", "gpt2": "h", "bert": "layer", "t5": "block"}[k],
    ),
    "dora": lambda k: peft.LoraConfig(r=4, lora_alpha=6, target_modules=SOME[k], use_dora=True),
    "pissa": lambda k: peft.LoraConfig(r=4, lora_alpha=6, target_modules=SOME[k], init_lora_weights="pissa"),
    "pissa-patterns": lambda k: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=SOME[k], init_lora_weights="pissa", rank_pattern={SOME[k][0]: 2}
    ),
    "adalora": lambda k: peft.AdaLoraConfig(init_r=4, lora_alpha=6, target_modules=SOME[k], total_step=9),
    "eva": lambda k: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=SOME[k], init_lora_weights="eva", rank_pattern={SOME[k][0]: 2},
        alpha_pattern={SOME[k][0]: 3},
    ),
    "olora": lambda k: peft.LoraConfig(r=4, lora_alpha=6, target_modules=SOME[k], init_lora_weights="olora"),
    "olora-patterns": lambda k: peft.LoraConfig(
        r=4, lora_alpha=6, target_modules=SOME[k], init_lora_weights="olora", rank_pattern={SOME[k][0]: 2}
    ),
    "vera": lambda k: peft.VeraConfig(r=5, target_modules=SOME[k], projection_prng_key=3),
    "vera-drawn": lambda k: peft.VeraConfig(
        r=5, target_modules=SOME[k], projection_prng_key=3, save_projection=False
    ),
    "vb-lora": lambda k: peft.VBLoRAConfig(r=3, num_vectors=10, vector_length=8, target_modules=SOME[k]),
    "vb-lora-topk": lambda k: peft.VBLoRAConfig(
        r=3, num_vectors=10, vector_length=8, target_modules=SOME[k], topk=3, save_only_topk_weights=True
    ),
    "randlora": lambda k: peft.RandLoraConfig(r=5, randlora_alpha=40, target_modules=SOME[k], projection_prng_key=3),
    "randlora-drawn": lambda k: peft.RandLoraConfig(
        r=5, randlora_alpha=40, target_modules=SOME[k], projection_prng_key=3, save_projection=False
    ),
    "randlora-sparse": lambda k: peft.RandLoraConfig(
        r=5, randlora_alpha=40, target_modules=SOME[k], sparse=True, save_projection=False
    ),
    "randlora-very-sparse": lambda k: peft.RandLoraConfig(
        r=5, randlora_alpha=40, target_modules=SOME[k], very_sparse=True, save_projection=False
    ),
    "ia3": lambda k: peft.IA3Config(target_modules=SOME[k], feedforward_modules=IN_FEED[k]),
    "road": lambda k: peft.RoadConfig(target_modules=SOME[k], group_size=8),
    "road_2": lambda k: peft.RoadConfig(target_modules=SOME[k], group_size=8, variant="road_2"),
    "road_4": lambda k: peft.RoadConfig(target_modules=SOME[k], group_size=8, variant="road_4"),
    "oft": lambda k: peft.OFTConfig(r=0, oft_block_size=8, target_modules=SOME[k]),
    "oft-share": lambda k: peft.OFTConfig(r=0, oft_block_size=8, target_modules=SOME[k], block_share=True),
    "oft-exact": lambda k: peft.OFTConfig(r=0, oft_block_size=8, target_modules=SOME[k], use_cayley_neumann=False),
    "oft-count": lambda k: peft.OFTConfig(r=4, oft_block_size=0, target_modules=SOME[k]),
    "coft": lambda k: peft.OFTConfig(r=0, oft_block_size=8, target_modules=SOME[k], coft=True, eps=0.3),
    "boft": lambda k: peft.BOFTConfig(boft_block_size=4, boft_n_butterfly_factor=1, target_modules=SOME[k]),
    "lntuning": lambda k: peft.LNTuningConfig(target_modules=NORMS[k]),
    "loha": lambda k: peft.LoHaConfig(r=3, alpha=5, target_modules=SOME[k]),
    "lokr": lambda k: peft.LoKrConfig(r=3, alpha=5, target_modules=SOME[k]),
    "lokr-both": lambda k: peft.LoKrConfig(
        r=1, alpha=5, decompose_factor=4, decompose_both=True, target_modules=SOME[k], init_weights="lycoris"
    ),
    "hira": lambda k: peft.HiraConfig(r=30, target_modules=SOME[k]),
    "hra": lambda k: peft.HRAConfig(r=4, target_modules=SOME[k]),
    "miss": lambda k: peft.MissConfig(r=5, target_modules=SOME[k]),
    "fourierft": lambda k: peft.FourierFTConfig(
        n_frequency=30, scaling=40.0, random_loc_seed=5, target_modules=SOME[k]
    ),
    "waveft": lambda k: peft.WaveFTConfig(n_frequency=30, scaling=4.0, random_loc_seed=5, target_modules=SOME[k]),
    "gralora": lambda k: peft.GraloraConfig(r=4, alpha=6, gralora_k=2, target_modules=SOME[k]),
    "gralora-hybrid": lambda k: peft.GraloraConfig(r=8, alpha=6, gralora_k=4, hybrid_r=3, target_modules=SOME[k]),
    "c3a": lambda k: peft.C3AConfig(block_size=8, target_modules=SOME[k]),
    "c3a-patterns": lambda k: peft.C3AConfig(
        block_size=8, block_size_pattern={SOME[k][0]: 4, f".*1.*{SOME[k][1]}": 16}, target_modules=SOME[k]
    ),
    "delora": lambda k: peft.DeloraConfig(r=4, delora_lambda=7, target_modules=SOME[k]),
    "tinylora": lambda k: peft.TinyLoraConfig(r=3, u=5, target_modules=SOME[k]),
    "tinylora-tied": lambda k: peft.TinyLoraConfig(r=3, u=5, weight_tying=0.4, target_modules=SOME[k]),
    "tinylora-drawn": lambda k: peft.TinyLoraConfig(
        r=3, u=5, weight_tying=1.0, save_projection=False, target_modules=SOME[k]
    ),
}  # fmt: skip


def theirs(kind: str, name: str, folder) -> tuple[torch.Tensor, dict, torch.Tensor]:
    """(their answer, the batch, the base's answer) after randomising what PEFT trains and saving it."""
    model, batch = make(kind)
    base = answer(model, batch).detach()
    model = peft.get_peft_model(model, CONFIGS[name](kind)).eval()
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=g))
        out = answer(model, batch)
    model.save_pretrained(folder)
    return out, batch, base


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("name", CONFIGS)
def test_what_peft_saved_answers_the_same_here(name, kind, tmp_path):
    if kind == "gpt2" and name in LINEAR_ONLY:
        pytest.skip("PEFT has it for nn.Linear alone")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want, batch, base = theirs(kind, name, tmp_path / "a")
    host = cw.Host(make(kind)[0])
    host.import_peft("x", tmp_path / "a")
    with torch.no_grad(), host.route("x"):
        got = answer(host.model, batch)
    assert (want - base).abs().max() > 1e-3, "the adapter does nothing"
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    path = host.save("x", tmp_path / "x.safetensors")
    again = cw.Host(make(kind)[0])
    again.load("y", path)
    assert all(torch.equal(t, host["x"].pools[n]) for n, t in again["y"].pools.items())
    with torch.no_grad(), again.route("y"):
        torch.testing.assert_close(answer(again.model, batch), got, rtol=1e-5, atol=2e-6)


NATIVE = {
    "lora": {"rank": 3, "alpha": 5.0, "ranks": (("*0*", 2),), "alphas": (("*1*", 7.0),)},
    "dora": {"rank": 3, "alpha": 5.0},
    "pissa": {"rank": 3, "alpha": 5.0},
    "adalora": {"rank": 3, "target": 2, "alpha": 5.0},
    "eva": {"rank": 3, "alpha": 5.0, "start": "random"},
    "olora": {"rank": 3, "alpha": 5.0},
    "vera": {"rank": 5},
    "vb-lora": {"rank": 3, "num_vectors": 12, "vector_length": 8},
    "vb-lora-compact": {"rank": 3, "num_vectors": 12, "vector_length": 8, "compact": True},
    "randlora": {"rank": 5},
    "ia3": {},
    "road": {"group_size": 8, "variant": "road_2"},
    "oft": {"block_size": 8},
    "boft": {"block_size": 4, "factors": 1},
    "lntuning": {},
    "loha": {"rank": 3, "alpha": 5.0},
    "lokr": {"rank": 1, "factor": 4, "both": True},
    "hira": {"rank": 3},
    "hra": {"rank": 4},
    "miss": {"rank": 5},
    "fourierft": {"n_frequency": 30, "random_loc_seed": 3},
    "waveft": {"n_frequency": 30, "random_loc_seed": 3},
    "gralora": {"rank": 4, "hybrid": 2},
    "c3a": {"block_size": 8},
    "c3a-default": {},
    "vb-lora-default": {},
    "delora": {"rank": 4, "bound": 3.0},
    "tinylora": {"rank": 3, "vectors": 5},
    "tinylora-groups": {"rank": 3, "vectors": 5, "groups": 4},
}


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("name", NATIVE)
def test_native_export_answers_the_same_in_peft_and_comes_back(name, kind, tmp_path):
    method = name.removesuffix("-compact").removesuffix("-groups").removesuffix("-default")
    model, batch = make(kind)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    stir(host.add("t", method, **NATIVE[name]), std=0.03)
    if kind == "gpt2" and method in LINEAR_ONLY:
        with pytest.raises(cw.CommonweightError, match=f"PEFT has no {method} for Conv1D"):
            host.export_peft("t", tmp_path / "a", native=True)
        return
    host.export_peft("t", tmp_path / "a", native=True)
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
    host.import_peft("u", tmp_path / "a")
    with torch.no_grad(), host.route("u"):
        torch.testing.assert_close(answer(model, batch), want, rtol=1e-5, atol=1e-5)
    assert host["u"].method.name == method
    with torch.no_grad():
        there = peft.PeftModel.from_pretrained(plain, tmp_path / "a").eval()
        torch.testing.assert_close(answer(there, batch), want, rtol=1e-5, atol=1e-5)


def test_blocks_of_several_sizes_stay_blocks(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs("llama", "c3a-patterns", tmp_path)
    host = cw.Host(make("llama")[0])
    mine = host.import_peft("x", tmp_path)
    pools = {n.removesuffix(".k"): v.shape[-1] for n, v in mine.pools.items()}
    first = "model.layers.0.self_attn."
    assert mine.method.name == "c3a" and {*pools.values()} == {4, 8, 16}
    assert (pools[first + "q_proj"], pools[first + "v_proj"], pools["model.layers.1.self_attn.v_proj"]) == (4, 8, 16)
    held = load_file(tmp_path / "adapter_model.safetensors")
    assert sum(v.numel() for v in mine.pools.values()) == sum(v.numel() for v in held.values())
    told = json.loads((tmp_path / "adapter_config.json").read_text())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**told, "block_size_pattern": {"q_proj": 4}}))
    with pytest.raises(cw.CommonweightError, match=r"1.self_attn.v_proj.c3a_kernel has block_size=16, .* says 4, 8; "):
        host.import_peft("y", tmp_path)
    assert "y" not in host


PLAIN = {
    "lora": ({"rank": 3, "ranks": (("*0*", 2),)}, 0.0),
    "mos": ({"rank": 4, "budget": 2, "private": 1, "shards": 2}, 0.0),
    "pissa": ({"rank": 3}, 0.0),
    "vera": ({"rank": 5}, 0.0),
    "randlora": ({"rank": 5}, 0.0),
    "dora": ({"rank": 3}, 1e-6),
    "ia3": ({}, 1e-6),
    "oft": ({"block_size": 8}, 1e-6),
    "boft": ({"block_size": 4}, 1e-6),
    "road": ({"group_size": 8}, 1e-6),
}


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("method", PLAIN)
def test_plain_lora_export_answers_the_same_in_peft(method, kind, tmp_path):
    options, tolerance = PLAIN[method]
    model, batch = make(kind)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    stir(host.add("t", method, **options), std=0.03)
    host.export_peft("t", tmp_path / "a", tolerance=tolerance)
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
    with torch.no_grad():
        there = peft.PeftModel.from_pretrained(plain, tmp_path / "a").eval()
        torch.testing.assert_close(answer(there, batch), want, rtol=1e-5, atol=1e-5)
    errors = [m["error"] for m in json.loads((tmp_path / "a" / "report.json").read_text())["modules"].values()]
    assert max(errors) <= max(tolerance, 1e-6)


@pytest.mark.parametrize("kind", ["bert", "llama"])
@pytest.mark.parametrize("method", METHODS)
def test_every_change_of_weights_that_peft_reaches_is_a_lora(method, kind, tmp_path):
    model, batch = make(kind)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    if not can(method, host):
        pytest.skip("reads nothing here")
    tenant = stir(host.add("t", method, **small(method)), std=0.03)
    uses = tenant.plan.uses
    fits = all(host.base.modules[u.site.split("[")[0]].kind in ("linear", "conv", "embedding") for u in uses)
    if not uses or not fits or any(getattr(u.bind, "weight", None) is None for u in uses):
        with pytest.raises(
            cw.CommonweightError, match=r"changes a|changes no weight|is no change|does not change a weight"
        ):
            host.export_peft("t", tmp_path / "a", native=False)
        assert not list(tmp_path.iterdir())
        return
    host.export_peft("t", tmp_path / "a", tolerance=1e-6, native=False)
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
    with torch.no_grad():
        there = peft.PeftModel.from_pretrained(plain, tmp_path / "a").eval()
        torch.testing.assert_close(answer(there, batch), want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["apt-prompts", "das", "dept", "dyt", "mam", "prompt-pool", "vqt"])
def test_what_is_no_change_of_weights_and_of_no_type_of_peft_has_no_file(method, tmp_path):
    host = cw.Host(make("bert" if can(method, cw.Host(make("bert")[0])) else "llama")[0])
    host.add("t", method, **small(method))
    with pytest.raises(cw.CommonweightError, match=f"{method} has no format of its own in PEFT"):
        host.export_peft("t", tmp_path / "a", native=True)
    assert not list(tmp_path.iterdir())


def test_a_changed_bias_goes_along(tmp_path):
    model, batch = make("bert")
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    stir(host.add("t", "bitfit", sites="*.query|*.key|*.value"))
    host.export_peft("t", tmp_path / "a")
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
    there = peft.PeftModel.from_pretrained(plain, tmp_path / "a").eval()
    with torch.no_grad():
        torch.testing.assert_close(answer(there, batch), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", SOME)
@pytest.mark.parametrize("name", NATIVE)
def test_the_default_is_peft_s_own_format_where_it_has_one(name, kind, tmp_path):
    method = name.removesuffix("-compact").removesuffix("-groups").removesuffix("-default")
    model, batch = make(kind)
    plain = copy.deepcopy(model)
    host = cw.Host(model)
    stir(host.add("t", method, **NATIVE[name]), std=0.03)
    host.export_peft("t", tmp_path / "a")
    report = json.loads((tmp_path / "a" / "report.json").read_text())
    lacks = kind == "gpt2" and method in LINEAR_ONLY
    assert report["native"] is not lacks
    if lacks:
        assert f"PEFT has no {method} for Conv1D layers" in report["why_not_native"]
    else:
        host.export_peft("t", tmp_path / "b", native=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    with torch.no_grad():
        with host.route("t"):
            want = answer(model, batch)
        there = peft.PeftModel.from_pretrained(plain, tmp_path / "a").eval()
        torch.testing.assert_close(answer(there, batch), want, rtol=1e-3, atol=1e-3)


def test_what_asks_for_lora(tmp_path):
    host = cw.Host(make("llama")[0])
    stir(host.add("t", "ia3"), std=0.03)
    sizes = {}
    for name, options in {"own": {}, "asked": {"native": False}, "loose": {"tolerance": 0.5}}.items():
        at = host.export_peft("t", tmp_path / name, **options)
        kind = json.loads((at / "adapter_config.json").read_text())["peft_type"]
        assert kind == ("IA3" if name == "own" else "LORA")
        sizes[name] = (at / "adapter_model.safetensors").stat().st_size
    assert sizes["own"] < sizes["loose"] < sizes["asked"]
    with pytest.raises(cw.CommonweightError, match="tolerance is of plain LoRA, native=True asks for"):
        host.export_peft("t", tmp_path / "no", native=True, tolerance=0.1)
    stir(host.add("m", "mos", rank=4, budget=2, private=1, shards=2))
    at = host.export_peft("m", tmp_path / "m")
    assert "mos has no format of its own in PEFT" in json.loads((at / "report.json").read_text())["why_not_native"]
