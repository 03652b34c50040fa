"""Every adapter type of PEFT: made by PEFT with numbers of weight, it gives the same outputs here, or says why not."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.formats.peft.kinds import KINDS, VERSION
from tests.models import answer, make

peft = pytest.importorskip("peft")
pytestmark = pytest.mark.skipif(peft.__version__ != VERSION, reason="the table is of another version")

LINEAR = ["q_proj", "v_proj", "down_proj"]
PROMPTS = "CARTRIDGE", "CPT", "MULTITASK_PROMPT_TUNING", "PREFIX_TUNING", "PROMPT_TUNING", "P_TUNING"
OPTIONS = {
    "ADALORA": {"init_r": 4, "target_r": 2, "total_step": 10},
    "ADAMSS": {"r": 8, "num_subspaces": 2},
    "ADAPTION_PROMPT": {"adapter_len": 3, "adapter_layers": 1, "target_modules": None, "task_type": "CAUSAL_LM"},
    "BEFT": {"target_modules": ["query", "value"]},
    "BOFT": {"boft_block_size": 4},
    "C3A": {"block_size": 16},
    "CPT": {"cpt_token_ids": [1, 2, 3], "cpt_mask": [1, 1, 1], "cpt_tokens_type_mask": [1, 2, 3]},
    "DEFT": {"r": 4},
    "DELORA": {"r": 4},
    "FOURIERFT": {"n_frequency": 40},
    "FROD": {"progressbar": False},
    "GLORA": {"r": 4},
    "GRALORA": {"r": 4, "alpha": 8},
    "HIRA": {"r": 4},
    "HRA": {"r": 4},
    "IA3": {"feedforward_modules": ["down_proj"]},
    "LILY": {"r": 4},
    "LN_TUNING": {"target_modules": ["input_layernorm"]},
    "LOHA": {"r": 3, "alpha": 6},
    "LOKR": {"r": 3, "alpha": 6},
    "LORA": {"r": 3, "lora_alpha": 6},
    "MISS": {"r": 4},
    "OFT": {"oft_block_size": 4},
    "OSF": {"effective_rank": 12},
    "PEANUT": {"r": 4, "depth": 1},
    "POLY": {"r": 2, "n_tasks": 2, "n_skills": 3},
    "PSOFT": {"r": 4, "psoft_alpha": 4},
    "PVERA": {"r": 8},
    "RANDLORA": {"r": 4},
    "ROAD": {"group_size": 8},
    "SHADOW": {"target_modules": None},
    "SHIRA": {"r": 2},
    "SUPERTUNING": {"sparsity": 0.9},
    "TINYLORA": {"u": 8},
    "TRAINABLE_TOKENS": {"token_indices": [*range(3, 61)], "target_modules": None},
    "UNILORA": {"theta_d_length": 64},
    "VBLORA": {"r": 2, "num_vectors": 16, "vector_length": 8},
    "VERA": {"r": 8},
    "WAVEFT": {"n_frequency": 40},
}
RANKS = {  # of what becomes LoRA
    "ADAMSS": 2, "DEFT": 4, "PEANUT": 4, "POLY": 2, "PSOFT": 4, "PVERA": 8, "UNILORA": 4,
}  # fmt: skip


def made(kind, folder, model="llama", **options):
    """What PEFT answers with an adapter whose every trained number was moved; the adapter lies in `folder`."""
    config = {**OPTIONS.get(kind, {}), **options}
    if kind in PROMPTS:
        config |= {"num_virtual_tokens": 3, "task_type": "CAUSAL_LM"}
    elif "target_modules" not in config:
        config["target_modules"] = LINEAR
    config = {k: v for k, v in config.items() if k != "target_modules" or v is not None}
    base, batch = make(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = peft.get_peft_model(base, peft.PeftConfig.from_peft_type(peft_type=kind, **config)).eval()
        g = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for p in theirs.parameters():
                if p.requires_grad:
                    p += torch.randn(p.shape, generator=g) * 0.05
        theirs.save_pretrained(str(folder))
        task = {"task_ids": torch.ones(4, dtype=torch.long)} if kind == "POLY" else {}
        if KINDS[kind].how == "refused":
            return None, batch
        with torch.no_grad():
            if kind in PROMPTS:  # which may answer for what stands in front, too
                ones = torch.ones_like(batch["input_ids"])
                return theirs(**batch, attention_mask=ones).logits[:, -ones.shape[1] :], batch
            return theirs.base_model(**batch, **task)[0], batch


def test_the_table_names_every_type():
    assert {t.value for t in peft.PeftType} == KINDS.keys()


@pytest.mark.parametrize("kind", [k for k, v in KINDS.items() if v.how != "refused"])
def test_the_outputs_are_those_of_peft(tmp_path, kind):
    model = "bert" if kind == "BEFT" else "llama"
    want, batch = made(kind, tmp_path, model)
    host, before = cw.Host(make(model)[0]), torch.get_rng_state()
    tenant = host.load_adapter(tmp_path, "t", task=1 if kind == "POLY" else None)
    assert torch.equal(torch.get_rng_state(), before)
    with torch.no_grad():
        base = answer(host.model, batch)
        with host.route("t"):
            got = answer(host.model, batch)
    how = KINDS[kind].how
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    assert (got - base).abs().max() > 1e-3
    if how == "native":
        assert f"`{tenant.method.name}`" in KINDS[kind].says
    else:
        assert tenant.method.name == {"low rank": "lora", "whole": "full", "bias": "bitfit"}[how]
    if how == "low rank":
        assert {tenant.config.rank} | {r for _, r in tenant.config.ranks} == {RANKS[kind]}


@pytest.mark.parametrize("kind", [k for k, v in KINDS.items() if v.how == "refused"])
def test_what_is_no_change_of_weights_is_refused_with_the_reason(tmp_path, kind):
    if kind == "XLORA":  # made of other adapters; the config alone is looked at
        (tmp_path / "adapter_config.json").write_text('{"peft_type": "XLORA", "hidden_size": 32}')
        save_file({"xlora_classifier.0.weight": torch.zeros(2, 2)}, tmp_path / "adapter_model.safetensors")
    else:
        made(kind, tmp_path)
    host = cw.Host(make("llama")[0])
    with pytest.raises(cw.CommonweightError) as e:
        host.load_adapter(tmp_path, "t")
    assert f"peft_type {kind} is not read: {KINDS[kind].says}" in str(e.value) and "t" not in host


@pytest.mark.parametrize("kind", ["ADALORA", "C3A", "FOURIERFT", "HIRA", "LOHA", "MISS", "WAVEFT"])
def test_gpt2s_transposed_layers_and_berts_biases(tmp_path, kind):
    for model, targets in (("bert", ["query", "output.dense"]), ("gpt2", ["c_attn"])):
        if model == "gpt2" and kind in ("C3A", "LOHA", "MISS"):  # PEFT has none
            continue
        want, batch = made(kind, tmp_path / model, model, target_modules=targets)
        host = cw.Host(make(model)[0])
        host.load_adapter(tmp_path / model, "t")
        with torch.no_grad(), host.route("t"):
            torch.testing.assert_close(answer(host.model, batch), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["BOFT", "HRA", "IA3", "LOHA", "LOKR", "LORA"])
def test_convolutions(tmp_path, kind):
    """A ViT's patches."""
    inward = {"feedforward_modules": ["query"]} if kind == "IA3" else {}
    want, batch = made(kind, tmp_path, "vit", target_modules=["projection", "query"], **inward)
    host = cw.Host(make("vit")[0])
    host.load_adapter(tmp_path, "t")
    with torch.no_grad():
        base = answer(host.model, batch)
        with host.route("t"):
            got = answer(host.model, batch)
    assert (got - base).abs().max() > 1e-3
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_an_oft_that_turns_patches_with_one_another_is_refused(tmp_path):
    """PEFT's OFT of a convolution does not compute with one weight; what it merges is another model."""
    made("OFT", tmp_path, "vit", target_modules=["projection"])
    with pytest.raises(cw.CommonweightError, match="projection: the adapter's answer is not that of one weight"):
        cw.Host(make("vit")[0]).load_adapter(tmp_path, "t")


def test_an_error_may_remain_where_it_is_asked_for(tmp_path):
    made("HIRA", tmp_path)
    host = cw.Host(make("llama")[0])
    whole, low = host.load_adapter(tmp_path, "whole"), host.load_adapter(tmp_path, "low", tolerance=0.7)
    assert (whole.method.name, low.method.name) == ("hira", "lora")
    a, b = host.merged("whole"), host.merged("low")
    errors = [(b[n] - a[n]).norm() / (a[n] - host.weight(n.removesuffix(".weight"))).norm() for n in a]
    assert 0.05 < max(errors) <= 0.7
    with pytest.raises(cw.CommonweightError, match=r"tolerance is -1; it must be 0 or more"):
        host.load_adapter(tmp_path, "t", tolerance=-1)


COUNTS = [
    ("TINYLORA", "u", r"tinylora_v.0 is \(8,\), the base wants \(1000000000,\)"),
    ("PVERA", "r", "r=1,000,000,000 is more than any side"),
]


@pytest.mark.parametrize("kind, option, said", COUNTS)
def test_counts_are_bounded_before_anything_is_made(tmp_path, kind, option, said):
    made(kind, tmp_path, **({"save_projection": False} if kind == "TINYLORA" else {}))
    at = tmp_path / "adapter_config.json"
    at.write_text(json.dumps({**json.loads(at.read_text()), option: 10**9}))
    with pytest.raises(cw.CommonweightError, match=said):
        cw.Host(make("llama")[0]).load_adapter(tmp_path, "t")


def test_tinylora_on_a_table_of_embeddings_goes_through_peft(tmp_path):
    want, batch = made("TINYLORA", tmp_path, target_modules=["embed_tokens", "q_proj"])
    host = cw.Host(make("llama")[0])
    assert host.load_adapter(tmp_path, "t").method.name == "lora"
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(host.model, batch), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weight_tying": 1.0}, "holds 4 vectors tinylora_v, its config wants 1 for 4 layers"),
        ({"save_projection": True}, "has no tinylora_P, though save_projection is true"),
    ],
)
def test_a_tinylora_that_is_not_what_its_config_says(tmp_path, change, said):
    made("TINYLORA", tmp_path, target_modules=["q_proj", "v_proj"], save_projection=False)
    at = tmp_path / "adapter_config.json"
    at.write_text(json.dumps({**json.loads(at.read_text()), **change}))
    with pytest.raises(cw.CommonweightError, match=said):
        cw.Host(make("llama")[0]).load_adapter(tmp_path, "t")


@pytest.mark.parametrize(
    "kind, options, method",
    [
        ("LOHA", {"rank_dropout": 0.1}, "lora"),
        ("LOKR", {"rank_pattern": {"v_proj": 2}}, "lora"),
        ("HRA", {"apply_GS": True}, "lora"),
        ("WAVEFT", {"wavelet_family": "db2"}, "full"),
        ("WAVEFT", {"use_idwt": False}, "full"),
        ("WAVEFT", {"proportional_parameters": True}, "full"),
        ("MISS", {"init_weights": "bat"}, "full"),
        ("DELORA", {"rank_pattern": {"v_proj": 2}}, "lora"),
    ],
)
def test_options_of_pefts_that_our_own_method_has_not_go_through_peft(tmp_path, kind, options, method):
    want, batch = made(kind, tmp_path, **options)
    host = cw.Host(make("llama")[0])
    assert host.load_adapter(tmp_path, "t").method.name == method
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(host.model, batch), want, rtol=1e-4, atol=1e-4)


def test_a_task_of_poly_must_be_named(tmp_path):
    made("POLY", tmp_path)
    host = cw.Host(make("llama")[0])
    with pytest.raises(cw.CommonweightError, match=r"holds 2 tasks, and a tenant is one; none was given"):
        host.load_adapter(tmp_path, "t")
    with pytest.raises(cw.CommonweightError, match=r"task=2 came"):
        host.load_adapter(tmp_path, "t", task=2)
    host.load_adapter(tmp_path, "a", task=0)
    host.load_adapter(tmp_path, "b", task=1)
    assert any((host["a"].pools[n] != p).any() for n, p in host["b"].pools.items())


def test_a_bias_where_the_base_has_none(tmp_path):
    made("BEFT", tmp_path, target_modules=["v_proj"])
    host = cw.Host(make("llama")[0])
    with pytest.raises(cw.CommonweightError, match=r"v_proj: changes a bias, and this base has none there"):
        host.load_adapter(tmp_path, "t")


@pytest.mark.parametrize("options", [{"use_bdlora": True}, {"kasa": True}])
def test_kinds_of_lora_that_only_peft_computes(tmp_path, options):
    if "kasa" in options:
        options = {"kasa_config": peft.tuners.lora.config.KasaConfig()} if hasattr(
            peft.tuners.lora.config, "KasaConfig"
        ) else pytest.skip("no KaSA")  # fmt: skip
    else:
        options = {"use_bdlora": peft.tuners.lora.config.BdLoraConfig(["q_proj"], nblocks=2, match_strict=False)}
    want, batch = made("LORA", tmp_path, r=4, **options)
    host = cw.Host(make("llama")[0])
    host.load_adapter(tmp_path, "t")
    with torch.no_grad(), host.route("t"):
        torch.testing.assert_close(answer(host.model, batch), want, rtol=1e-5, atol=1e-5)


def test_another_base_and_damage_are_told(tmp_path):
    made("SHIRA", tmp_path)
    with pytest.raises(cw.CommonweightError, match="made for another model"):
        cw.Host(make("gpt2")[0]).load_adapter(tmp_path, "t")
    at = tmp_path / "adapter_model.safetensors"
    tensors = load_file(at)
    save_file(dict([*tensors.items()][1:]), at)
    with pytest.raises(cw.CommonweightError, match=r"adapter_model.safetensors: has no .*shira"):
        cw.Host(make("llama")[0]).load_adapter(tmp_path, "t")
    save_file({**tensors, next(iter(tensors)): torch.zeros(3, 3)}, at)
    with pytest.raises(cw.CommonweightError, match=r"PEFT 0.21.2 cannot load this SHIRA adapter .* size mismatch"):
        cw.Host(make("llama")[0]).load_adapter(tmp_path, "t")
    save_file({**tensors, "base_model.model.model.norm.weight": torch.ones(32) * 3}, at)
    with pytest.raises(cw.CommonweightError, match=r"norm\.weight: a parameter of the base"):
        cw.Host(make("llama")[0]).load_adapter(tmp_path, "t")
