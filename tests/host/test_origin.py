"""What a tenant's file says of a quantised base, and where it loads."""

from __future__ import annotations

import json

import peft
import pytest
import torch
import transformers as tf
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

import commonweight as cw
from commonweight.formats.fingerprint import of_weights
from commonweight.formats.native import read_header
from commonweight.host import disk, files
from commonweight.host.origin import of_float
from commonweight.host.origin import quantised as form_of
from commonweight.host.weights import dense, sample
from tests.host.quantised import IDS, KINDS, SITE, here, in_float, llama, quantised, there
from tests.laws.subjects import stir
from tests.mixtures import MIXTURES, mixture

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries
needs_bitsandbytes = pytest.mark.skipif(not there("bitsandbytes"), reason="bitsandbytes is not installed")


@pytest.mark.parametrize("kind", [here(k) for k in KINDS])
def test_the_form_of_a_base_is_told(kind):
    form = form_of(quantised(kind))
    library = {"bitsandbytes": "bitsandbytes", "torchao": "torchao", "quanto": "optimum", "hqq": "hqq"}
    first = kind.split("-")[0]
    assert form is not None and form.startswith(library.get(first, "gptqmodel" if first == "gptq" else "compressed"))
    assert form_of(llama()) is None


@pytest.fixture
def folder(tmp_path):
    llama().save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def loaded(folder, seed: int | None = None, dtype: torch.dtype = torch.float32, **how):
    if seed is not None:
        llama(seed).save_pretrained(folder)
    if how:
        how = {"quantization_config": BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **how)}
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, device_map="cpu", **how).eval()


NF4 = {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}
INT8 = {"load_in_8bit": True}


@needs_bitsandbytes
@pytest.mark.parametrize(("there_", "here_"), [({}, NF4), (NF4, {}), (NF4, INT8), (INT8, {})])
def test_a_tenant_goes_from_a_base_to_its_quantised_copy_and_back(there_, here_, folder, tmp_path):
    first = cw.Host(loaded(folder, **there_))
    stir(first.add("a", "lora", rank=2))
    path = first.save("a", tmp_path / "a.safetensors")
    header = read_header(path)
    assert ("quantised" in header) == ("float" in header) == bool(there_)
    second = cw.Host(loaded(folder, **here_))
    second.load("a", path)
    for n, p in first["a"].named_parameters():
        assert torch.equal(p, second["a"].pools[n])


@needs_bitsandbytes
@pytest.mark.parametrize("what", ["a norm in memory", "the head in memory", "another revision", "an older file beside"])
def test_a_folder_that_the_model_was_not_made_of_is_no_origin(what, folder, tmp_path):
    first = cw.Host(loaded(folder))
    stir(first.add("a", "lora", rank=2))
    path = first.save("a", tmp_path / "a.safetensors")
    if what == "an older file beside":  # the tenant's, which is not loaded
        (folder / "model.safetensors").rename(folder / "older.safetensors")
        llama(1).save_pretrained(folder)
    model = loaded(folder, **NF4)
    if what == "another revision":
        llama(1).save_pretrained(folder)
    elif what.endswith("memory"):
        changed = model.model.norm if what == "a norm in memory" else model.lm_head
        with torch.no_grad():
            changed.weight.mul_(1.5)
    with pytest.raises(cw.CommonweightError, match="made for another base"):
        cw.Host(model).load("a", path)


@needs_bitsandbytes
def test_an_index_says_which_files_are_read(folder, tmp_path):
    first = cw.Host(loaded(folder))
    stir(first.add("a", "lora", rank=2))
    path = first.save("a", tmp_path / "a.safetensors")
    (folder / "model.safetensors").unlink()
    llama().save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").is_file()
    llama(1).save_pretrained(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(folder / "older.safetensors")
    cw.Host(loaded(folder, **NF4)).load("a", path)


@needs_bitsandbytes
@pytest.mark.parametrize("how", [NF4, INT8])
@pytest.mark.parametrize("sites", [None, "*attn.c_proj"])
def test_a_layer_that_lay_turned_on_disk_is_read_there(sites, how, tmp_path):
    """GPT-2's: Conv1D on disk, packed as linear layers."""
    for name, seed in (("base", 0), ("other", 1)):
        torch.manual_seed(seed)
        tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)).save_pretrained(
            tmp_path / name
        )
    first = cw.Host(loaded(tmp_path / "base", **how))
    stir(first.add("a", "lora", rank=2, sites=sites))
    path = first.save("a", tmp_path / "a.safetensors")
    plain = cw.Host(loaded(tmp_path / "base"))
    plain.load("a", path)
    assert read_header(path)["float"] == read_header(plain.save("a", tmp_path / "b.safetensors"))["weights"]
    with pytest.raises(cw.CommonweightError, match="made for another base"):
        cw.Host(loaded(tmp_path / "other")).load("a", path)


@needs_bitsandbytes
@pytest.mark.parametrize(
    "index",
    ["[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": 1}}', '{"weight_map": {"a": "gone"}}', "\xff", "[" * 9],
)
def test_a_damaged_index_is_no_origin(index, folder):
    host = cw.Host(loaded(folder, **NF4))
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_bytes(index.encode("latin1"))
    assert of_float(host.base.model, host.base.modules, host.base.every) is None
    host.base.inner.config._name_or_path = 3
    assert of_float(host.base.model, host.base.modules, host.base.every) is None


@needs_bitsandbytes
def test_files_are_opened_once_for_as_long_as_they_stay(folder, monkeypatch):
    host, opened = cw.Host(loaded(folder, **NF4)), []
    monkeypatch.setattr(disk, "safe_open", lambda *a, own=disk.safe_open: opened.append(a) or own(*a))
    sites = [s for s in host.base.every if s.kind == "linear"]
    found = {of_float(host.base.model, host.base.modules, sites) for _ in range(3)}
    assert len(found) == len(opened) == 1 and None not in found
    with torch.no_grad():
        host.base.inner.model.norm.weight.add_(0.5)
    assert of_float(host.base.model, host.base.modules, sites) is None
    with torch.no_grad():
        host.base.inner.model.norm.weight.sub_(0.5)
    assert of_float(host.base.model, host.base.modules, sites) in found
    llama(1).save_pretrained(folder)
    assert of_float(host.base.model, host.base.modules, sites) is None


@needs_bitsandbytes
def test_a_single_number_is_held_against_the_one_on_disk(tmp_path):
    """CLIP's scale of its products."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 4}
    text, eye = {**sizes, "vocab_size": 64}, {**sizes, "image_size": 16, "patch_size": 8}
    tf.CLIPModel(tf.CLIPConfig(text_config=text, vision_config=eye, projection_dim=16)).save_pretrained(tmp_path)
    packs = BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **NF4)
    model = tf.CLIPModel.from_pretrained(tmp_path, dtype=torch.float32, quantization_config=packs, device_map="cpu")
    base = cw.Host(model).base
    sites = [s for s in base.every if s.kind == "linear"]
    assert of_float(base.model, base.modules, sites) is not None
    model.logit_scale.data += 1
    assert of_float(base.model, base.modules, sites) is None


NO_MATRIX = {
    "a table": ("lora", {"rank": 2, "sites": "*embed_tokens"}),
    "tokens": ("tokens", {}),
    "prompts": ("prompt-tuning", {}),
    "blocks": ("loreft", {}),
    "norms": ("lntuning", {}),
}


@needs_bitsandbytes
@pytest.mark.parametrize("which", NO_MATRIX)
def test_a_tenant_that_reads_no_matrix_is_held_against_some_of_the_base(which, folder, tmp_path):
    method, options = NO_MATRIX[which]
    llama(1).save_pretrained(tmp_path / "other")
    for there_, here_ in (({}, NF4), (NF4, {}), (NF4, INT8)):
        first = cw.Host(loaded(folder, **there_))
        first.add("a", method, **options)
        path = first.save("a", tmp_path / "a.safetensors")
        cw.Host(loaded(folder, **here_)).load("a", path)
        for how in (there_, here_):
            with pytest.raises(cw.CommonweightError, match="made for another base"):
                cw.Host(loaded(tmp_path / "other", **how)).load("a", path)


@needs_bitsandbytes
def test_an_older_file_of_such_a_tenant_loads_where_it_was_made_and_on_no_other_base(folder, tmp_path, monkeypatch):
    """Its origin was the fingerprint of nothing, the same everywhere."""
    host = cw.Host(loaded(folder, **NF4))
    host.add("a", "prompt-tuning")
    with monkeypatch.context() as m:
        m.setattr(files, "_origin", lambda base, sites: of_weights([], base_numbers(base)))
        path = host.save("a", tmp_path / "a.safetensors")
    assert read_header(path)["float"] == of_weights([], base_numbers(host.base))
    cw.Host(loaded(folder, **NF4)).load("a", path)
    for seed in (None, 1):
        plain = cw.Host(loaded(folder, seed))
        with pytest.raises(cw.CommonweightError, match=r"not on record.*check_base=False"):
            plain.load("a", path)
        plain.load("a", path, check_base=False)


FORMS = {
    "nf4": NF4,
    "fp4": {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"},
    "double": {**NF4, "bnb_4bit_use_double_quant": True},
    "int8": INT8,
}


def linear(host) -> list:
    return [s for s in host.base.every if s.kind == "linear"]


@needs_bitsandbytes
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_single_numbers_of_a_packed_weight_are_those_of_the_whole(form, dtype, folder):
    """Before and after the first forward, which lays them otherwise on some CPUs; and they are those on disk."""
    host = cw.Host(loaded(folder, dtype=dtype, **FORMS[form]))
    for _ in range(2):
        for site in linear(host):
            module = host.base.modules[site.name].module
            whole = dense(module, steady=True).float().reshape(-1)
            assert torch.equal(sample(module, torch.arange(whole.numel())).float(), whole)
        assert of_float(host.base.model, host.base.modules, linear(host)) is not None
        with torch.no_grad():
            host.base.inner(IDS)


@needs_bitsandbytes
@pytest.mark.parametrize(("form", "alpha"), [("nf4", 0.04), ("fp4", 0.04), ("int8", 0.01), ("double", 0.2)])
def test_a_base_that_an_adapter_was_merged_into_has_no_origin(form, alpha, folder, tmp_path):
    """alpha: the weights of one projection move by 1/50 of their size, by 1/10 or by 1/200."""
    how = peft.LoraConfig(r=4, target_modules=["layers.1.self_attn.v_proj"], init_lora_weights=False, lora_alpha=alpha)
    torch.manual_seed(0)
    around = peft.get_peft_model(loaded(folder, **FORMS[form]), how)
    carrying = cw.Host(around)
    assert of_float(carrying.base.model, carrying.base.modules, linear(carrying)) is None
    carrying.close()
    host = cw.Host(around.merge_and_unload())
    stir(host.add("a", "lora", rank=2))
    path = host.save("a", tmp_path / "a.safetensors")
    assert "quantised" in read_header(path) and "float" not in read_header(path)
    with pytest.raises(cw.CommonweightError, match="made for another base"):
        cw.Host(loaded(folder)).load("a", path)
    plain = cw.Host(loaded(folder))
    stir(plain.add("a", "lora", rank=2))
    plain.save("a", path)
    with pytest.raises(cw.CommonweightError, match="made for another base"):
        host.load("b", path)


@needs_bitsandbytes
def test_rows_of_other_sizes_have_the_origin_of_what_they_are_under_double_quantisation(folder, tmp_path):
    """Scales are rounded by the largest of 256: small rows lose much of themselves."""
    model = loaded(folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(torch.randn(len(p), 1).exp())
    model.save_pretrained(tmp_path / "base")
    host = cw.Host(loaded(tmp_path / "base", **FORMS["double"]))
    assert of_float(host.base.model, host.base.modules, linear(host)) is not None


@needs_bitsandbytes
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_packed_experts_that_were_changed_have_no_origin(kind, tmp_path):
    from commonweight.adapt.expert_packs import with_experts

    mixture(kind)[0].save_pretrained(tmp_path / "base")
    packs = with_experts(BitsAndBytesConfig(bnb_4bit_compute_dtype=torch.float32, **NF4))
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "base", dtype=torch.float32, device_map="cpu", quantization_config=packs
    )
    host = cw.Host(model)
    sites = [s for s in host.base.every if s.kind == "expert"]
    assert of_float(host.base.model, host.base.modules, sites) is not None
    with torch.no_grad():  # another scale of the same codes
        made = next(p for m in host.base.inner.modules() for p in getattr(m, "parametrizations", {}).values())
        made[0].quant_state.absmax.mul_(1.02)
    assert of_float(host.base.model, host.base.modules, sites) is None


def turning() -> torch.nn.Module:
    """Its experts lie on disk with their inputs first."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 64}
    text = {**sizes, "intermediate_size": 64, "moe_intermediate_size": 24, "num_experts": 4, "num_experts_per_tok": 2}
    text |= {
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rope_parameters": {"rope_theta": 1e4, "mrope_section": [2, 1, 1]},
    }
    eye = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 32}
    return tf.Qwen3VLMoeForConditionalGeneration(
        tf.Qwen3VLMoeConfig(text_config=text, vision_config={**eye, "deepstack_visual_indexes": [0]})
    )


def cut() -> torch.nn.Module:
    """Its query, key and value lie on disk as one."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    return tf.GteModel(tf.GteConfig(vocab_size=64, **sizes))


SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}


def tied_t5() -> torch.nn.Module:
    return tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=64, d_model=32, d_kv=8, d_ff=48, num_layers=1, num_heads=4, tie_word_embeddings=True)
    )


def tied_gemma3() -> torch.nn.Module:
    sizes = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "intermediate_size": 48}
    return tf.Gemma3ForCausalLM(tf.Gemma3TextConfig(**SMALL, **sizes))


def tied_mamba() -> torch.nn.Module:
    return tf.MambaForCausalLM(tf.MambaConfig(**SMALL, state_size=4, tie_word_embeddings=True))


EXPERTS = {**{k: lambda k=k: mixture(k)[0] for k in MIXTURES}, "qwen3_vl_moe": turning}
TIED = {
    "llama": lambda: llama(tie_word_embeddings=True),
    "t5": tied_t5,
    "gemma3": tied_gemma3,
    "mamba": tied_mamba,
}  # one table on disk for the input and the head
LAID = {**EXPERTS, "gte": cut, **TIED}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("kind", LAID)
def test_what_transformers_makes_of_a_files_tensors_is_found_there(kind, old, tmp_path, monkeypatch):
    """Each expert in a tensor of its own as in transformers 4, or all in one as in the model; with others' ways too."""
    torch.manual_seed(0)
    model = LAID[kind]()
    model.save_pretrained(tmp_path / "base", save_original_format=old)
    base = cw.Host(type(model).from_pretrained(tmp_path / "base", dtype=torch.float32)).base
    read = [s for s in base.every if s.kind in ("linear", "expert", "router", "norm")]
    assert {"linear", *(("expert",) if kind in EXPERTS else ())} <= {s.kind for s in read}
    assert kind not in TIED or any(s.name == "lm_head" for s in read)
    for site in read:
        there = of_float(base.model, base.modules, [site])
        assert there is not None and there == of_weights([site], base_numbers(base)), site
    whole = of_float(base.model, base.modules, read)
    monkeypatch.setattr(disk, "_way", lambda op: None)
    assert whole == of_float(base.model, base.modules, read)


def base_numbers(base):
    return lambda site, places: base.modules[site.name.split("[")[0]].rows(site.rows).steady(places)


@needs_bitsandbytes
@pytest.mark.parametrize(("there_", "here_"), [({}, NF4), (NF4, {}), (NF4, INT8)])
@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_a_tenant_of_a_mixture_goes_to_its_quantised_copy_and_back(kind, there_, here_, tmp_path):
    mixture(kind)[0].save_pretrained(tmp_path / "base")
    first = cw.Host(loaded(tmp_path / "base", **there_))
    stir(first.add("a", "lora", rank=2))
    path = first.save("a", tmp_path / "a.safetensors")
    second = cw.Host(loaded(tmp_path / "base", **here_))
    second.load("a", path)
    with torch.no_grad():
        model = mixture(kind)[0]
        next(p for n, p in model.named_parameters() if n.endswith("down_proj"))[-1] += 0.1
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(cw.CommonweightError, match="made for another base"):
        cw.Host(loaded(tmp_path / "other", **(here_ or NF4))).load("a", path)


@needs_bitsandbytes
def test_a_copy_of_other_weights_is_refused_and_says_how_it_can_be_taken(folder, tmp_path):
    first = cw.Host(loaded(folder))
    path = first.save(stir(first.add("a", "lora", rank=2)).name, tmp_path / "a.safetensors")
    other = cw.Host(loaded(tmp_path / "other", 1, **NF4))
    with pytest.raises(cw.CommonweightError, match=r"floating point there, bitsandbytes nf4 here.*check_base=False"):
        other.load("a", path)
    other.load("a", path, check_base=False)


@needs_bitsandbytes
def test_what_is_packed_on_disk_already_has_no_float_origin(folder, tmp_path):
    loaded(folder, **NF4).save_pretrained(tmp_path / "packed")
    host = cw.Host(AutoModelForCausalLM.from_pretrained(tmp_path / "packed", device_map="cpu"))
    header = read_header(host.save(host.add("a", "lora").name, tmp_path / "a.safetensors"))
    assert header["quantised"] == "bitsandbytes nf4" and "float" not in header


class TestMerged:
    @pytest.mark.parametrize("kind", [here(k) for k in KINDS])
    def test_a_merged_model_is_an_ordinary_one(self, kind, tmp_path):
        host = cw.Host(quantised(kind))
        plain = cw.Host(in_float(host.model))
        for h in (host, plain):
            stir(h.add("a", "lora", rank=2))
        model = host.merged_model("a")
        with torch.no_grad(), plain.route("a"):
            want = plain.model(IDS).logits
        model.save_pretrained(tmp_path / "out")
        assert "quantization_config" not in json.loads((tmp_path / "out" / "config.json").read_text())
        again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
        with torch.no_grad():
            torch.testing.assert_close(again(IDS).logits, want, rtol=1e-3, atol=1e-4)
        assert all(v.is_floating_point() for v in host.merged("a").values())

    @pytest.mark.parametrize("kind", [here(k) for k in KINDS])
    def test_merged_weights_are_packed_again_or_it_says_why_not(self, kind):
        host = cw.Host(quantised(kind))
        host.add("a", "full", sites=SITE)
        if kind in ("gptq",):
            with pytest.raises(cw.CommonweightError, match=r"q_proj: .*gptqmodel's TorchLinear.*merged\(name\)"):
                host.merged("a", requantise=True)
            return
        again, own = host.merged("a", requantise=True), quantised(kind).get_submodule(SITE)
        held = own.state_dict()
        for k, v in held.items():
            if (mine := again.get(f"{SITE}.{k}")) is None:  # scales of an input are not the weight's
                continue
            if isinstance(v, torch.Tensor) and k in ("weight", "W_q", "weight_packed") and type(mine) is torch.Tensor:
                assert (mine != v).float().mean() < 0.02, k
            elif hasattr(v, "dequantize") and type(v) not in (torch.Tensor, torch.nn.Parameter):
                assert type(mine) is type(v)
                torch.testing.assert_close(mine.dequantize(), v.dequantize(), rtol=0.1, atol=2e-3)


def test_a_model_without_a_config_is_merged_by_its_weights():
    host = cw.Host(torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)))
    host.add("a", "lora", rank=2)
    with pytest.raises(cw.CommonweightError, match=r"no model of transformers.*host\.merged\(name\)"):
        host.merged_model("a")


def test_a_merged_model_of_an_ordinary_base():
    host = cw.Host(llama(tie_word_embeddings=True))
    stir(host.add("a", "lora", rank=2))
    with torch.no_grad(), host.route("a"):
        want = host.model(IDS).logits
    with torch.no_grad():
        torch.testing.assert_close(host.merged_model("a")(IDS).logits, want, rtol=1e-4, atol=1e-5)


@needs_bitsandbytes
def test_trainers_see_a_module_that_may_be_trained_and_it_saves_an_ordinary_folder(folder, tmp_path):
    host = cw.Host(loaded(folder, **NF4))
    stir(host.add("a", "lora", rank=2))
    module = host.module("a")
    assert host.model.is_quantized and not module.is_quantized and module.hf_quantizer is None
    module.save_pretrained(tmp_path / "out")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    assert not getattr(again, "is_quantized", False)
    with torch.no_grad(), host.route("a"):
        torch.testing.assert_close(again(IDS).logits, host.model(IDS).logits, rtol=1e-3, atol=1e-4)
