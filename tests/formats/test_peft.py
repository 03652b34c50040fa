"""PEFT's adapter folders: what is refused and how, folders that appear whole, errors that are stated."""

from __future__ import annotations

import json
import re
import shutil

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.adapt import Classifier
from commonweight.formats import atomic
from commonweight.formats.peft import FAMILIES, common, folder, low_rank
from tests.drawn import drawn
from tests.laws.subjects import stir
from tests.models import answer, make

CONFIG, TENSORS = folder.CONFIG, folder.TENSORS
Q = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def host():
    return cw.Host(make("llama")[0])


@pytest.fixture
def saved(host, tmp_path):
    stir(host.add("t", "lora", rank=2, sites="*.q_proj|*.v_proj"))
    return host.export_peft("t", tmp_path / "a")


def edit(saved, config=None, tensors=None):
    """Changes what is in the folder: values of the config, tensors (None takes one away). It then has no digests."""
    (saved / folder.REPORT).unlink(missing_ok=True)
    if config:
        was = json.loads((saved / CONFIG).read_text())
        (saved / CONFIG).write_text(json.dumps({**was, **config}))
    if tensors:
        new = {**load_file(saved / TENSORS), **tensors}
        save_file({k: v for k, v in new.items() if v is not None}, saved / TENSORS)


def refused(host, saved, says):
    before = list(host)
    with pytest.raises(cw.CommonweightError, match=says) as e:
        host.import_peft("x", saved)
    assert list(host) == before and str(saved) in str(e.value)


def test_there_and_back(host, saved):
    batch = make("llama")[1]
    host.import_peft("x", saved)
    with torch.no_grad():
        with host.route("t"):
            want = answer(host.model, batch)
        with host.route("x"):
            torch.testing.assert_close(answer(host.model, batch), want)
    assert json.loads((saved / CONFIG).read_text())["target_modules"] == ["q_proj", "v_proj"]
    report = json.loads((saved / folder.REPORT).read_text())
    assert report["modules"]["model.layers.0.self_attn.q_proj"] == {"rank": 2, "error": 0.0}


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "LILY"}, "peft_type LILY is not read: its change depends on the input"),
        ({"peft_type": "NEW"}, r"peft_type NEW is none of PEFT 0\.21\.2, .* ADALORA, ADAMSS"),
        ({"peft_type": 3}, "names no peft_type"),
        (
            {"modules_to_save": ["lm_head"]},
            r"modules_to_save=\['lm_head'\] are whole modules .* the file no weights of them",
        ),
        ({"trainable_token_indices": [1]}, r"trainable_token_indices=\[1\] is not supported: the file has no such"),
        ({"use_qalora": True}, "use_qalora=True is not supported"),
        ({"alora_invocation_tokens": ["x"]}, r"alora_invocation_tokens is \['x'\]; wanted a list of token ids"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"init_lora_weights": "lora_ga"}, "init_lora_weights='lora_ga' moved the base weights"),
        ({"init_lora_weights": "pissa_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"use_dora": True}, "layers.0.self_attn.q_proj has no lora_magnitude_vector"),
        ({"r": 3}, r"q_proj.lora_A.weight is \(2, 32\), its rank and the base want \(3, 32\)"),
        ({"r": "x"}, "r is 'x'; wanted a number"),
        ({"r": 0}, "r is 0; wanted 1, 2"),
        ({"rank_pattern": 4}, "rank_pattern is 4; wanted an object"),
        ({"rank_pattern": {"(": 4}}, "'\\(' is not a regular expression"),
        ({"lora_alpha": -1}, "alpha is -1.0"),
    ],
)
def test_a_config_that_is_not_understood(host, saved, config, says):
    edit(saved, config)
    refused(host, saved, says)


@pytest.mark.parametrize(
    ("tensors", "says"),
    [
        ({f"{Q}.lora_A.weight": torch.zeros(2, 30)}, r"q_proj.lora_A.weight is \(2, 30\), .* want \(2, 32\)"),
        ({f"{Q}.lora_A.weight": torch.full((2, 32), torch.nan)}, "q_proj.lora_A.weight holds NaN"),
        ({f"{Q}.lora_B.weight": None}, "self_attn.q_proj has no lora_B.weight"),
        ({f"{Q}.lora_B.bias": torch.zeros(32)}, "lora_B.bias: adapter_config.json does not say lora_bias=true"),
        ({f"{Q}.lora_C.weight": torch.zeros(2)}, "lora_C.weight: a parameter of the base or of a head"),
        ({f"{Q}.lora_E": torch.zeros(2)}, "lora_E: no tensor that this kind of adapter has"),
        (
            {"base_model.model.model.embed_tokens.lora_embedding_A": torch.zeros(2, 61)},
            "embed_tokens has no lora_B.weight",
        ),
        ({"base_model.model.model.embed_tokens.token_adapter.base_layer": torch.zeros(2)}, "another kind of layer"),
        ({"base_model.model.score.weight": torch.zeros(2)}, "score.weight: a parameter of the base or of a head"),
        (
            {"base_model.model.model.embed_tokens.lora_A.weight": torch.zeros(2, 32)},
            "this base has no linear layer model.embed_tokens; made for another model, or for another kind",
        ),
        ({"base_model.model.other.lora_A.weight": torch.zeros(2, 32)}, "this base has no linear layer other"),
    ],
)
def test_tensors_that_are_not_understood(host, saved, tensors, says):
    edit(saved, tensors=tensors)
    refused(host, saved, says)


def test_files_that_are_missing_or_damaged(host, saved, tmp_path):
    (saved / folder.REPORT).unlink()
    refused(host, tmp_path / "nowhere", "no such folder")
    data = (saved / TENSORS).read_bytes()
    for part in (data[:-5], data[:20], b"", b"\xff" * 100):
        (saved / TENSORS).write_bytes(part)
        refused(host, saved, "not a whole safetensors file|it is empty")
    (saved / TENSORS).rename(saved / folder.PICKLE)
    refused(host, saved, "it is damaged; copy it again")
    (saved / folder.PICKLE).unlink()
    refused(host, saved, f"has no {TENSORS}")
    for text in ("{", "[" * 100_000, "[]", "{}", "\udc80".encode("utf-8", "surrogateescape").decode("latin1")):
        (saved / CONFIG).write_text(text)
        refused(host, saved, "not a whole JSON file|holds a list|names no peft_type")
    (saved / CONFIG).unlink()
    refused(host, saved, f"has no {CONFIG}")


def test_a_name_that_is_taken(host, saved):
    with pytest.raises(cw.CommonweightError, match="'t' is taken"):
        host.import_peft("t", saved)


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 70), st.floats(), st.text(max_size=5), st.lists(st.integers())
)
KEYS = st.sampled_from(
    ["peft_type", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "lora_dropout", "init_lora_weights", "use_dora",
     "use_rslora", "bias", "topk", "num_vectors", "vector_length", "oft_block_size", "variant", "group_size", "coft"]
)  # fmt: skip


@drawn(60)
@given(
    config=st.dictionaries(KEYS, JUNK, max_size=4),
    kind=st.sampled_from([None, *FAMILIES]),
    shape=st.lists(st.integers(0, 33), max_size=3),
)
def test_junk_is_refused_or_read_but_never_a_crash(host, saved, config, kind, shape):
    work = saved.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(saved, work)
    edit(work, {**config, **({"peft_type": kind} if kind else {})}, {f"{Q}.lora_A.weight": torch.zeros(shape)})
    try:
        host.import_peft("x", work)
        host.remove("x")
    except cw.CommonweightError:
        pass
    assert list(host) == ["t"]


SLOTS = {
    "BOFT": ("boft_R", "boft_s"), "IA3": ("ia3_l",), "LN_TUNING": ("ln_tuning_layers.weight",),
    "LORA": ("lora_A.weight", "lora_B.weight"), "OFT": ("oft_R.weight",),
    "RANDLORA": ("randlora_lambda", "randlora_gamma"),
    "ROAD": ("road_theta", "road_alpha"), "VBLORA": ("vblora_logits_A", "vblora_logits_B"),
    "VERA": ("vera_lambda_d", "vera_lambda_b"),
}  # fmt: skip


@drawn(80)
@given(
    kind=st.sampled_from(sorted(SLOTS)),
    shapes=st.lists(st.lists(st.integers(0, 33), max_size=4), min_size=2, max_size=2),
)
def test_tensors_of_any_shape_are_no_crash(host, tmp_path, kind, shapes):
    work = tmp_path / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    config = {"peft_type": kind, "r": 2, "topk": 2, "num_vectors": 5, "vector_length": 8, "save_projection": False}
    (work / CONFIG).write_text(json.dumps({**config, "projection_prng_key": 0}))
    at = Q.replace("self_attn.q_proj", "input_layernorm") if kind == "LN_TUNING" else Q
    save_file({f"{at}.{s}": torch.zeros(shape) for s, shape in zip(SLOTS[kind], shapes)}, work / TENSORS)
    try:
        host.import_peft("x", work)
        host.remove("x")
    except cw.CommonweightError:
        pass
    assert not list(host)


def test_a_folder_appears_whole_or_not_at_all(host, saved, monkeypatch):
    with pytest.raises(cw.CommonweightError, match="is not empty; choose another folder, or give overwrite=True"):
        host.export_peft("t", saved)
    host.export_peft("t", saved, overwrite=True)
    was = (saved / TENSORS).read_bytes()

    def full(fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(atomic.os, "fsync", full)
    with pytest.raises(cw.CommonweightError, match="No space left on device; nothing was written"):
        host.export_peft("t", saved, overwrite=True)
    with pytest.raises(cw.CommonweightError, match="nothing was written"):
        host.export_peft("t", saved.parent / "new")
    monkeypatch.undo()
    assert (saved / TENSORS).read_bytes() == was and [p.name for p in saved.parent.iterdir()] == ["a"]
    (saved.parent / "b").mkdir()
    host.export_peft("t", saved.parent / "b")
    (saved.parent / "c").mkdir()
    (saved.parent / "c" / "thesis.txt").write_text("mine")
    with pytest.raises(cw.CommonweightError, match="not empty and no adapter folder; it is not replaced"):
        host.export_peft("t", saved.parent / "c", overwrite=True)
    with pytest.raises(cw.CommonweightError, match="is a file"):
        host.export_peft("t", saved / CONFIG)
    with pytest.raises(cw.CommonweightError, match="this folder cannot be made: "):
        host.export_peft("t", saved / CONFIG / "where")
    assert (host.export_peft("t", saved / "new" / "folders") / CONFIG).is_file()


def test_a_tolerance_that_cannot_be_met_names_the_worst_module(host, tmp_path):
    stir(host.add("t", "oft", block_size=8, sites="*.q_proj|*.v_proj"))
    with pytest.raises(
        cw.CommonweightError, match=r"model\.layers\.\d\.self_attn\.._proj: rank 2 leaves a relative error of 0\.\d+;"
    ):
        host.export_peft("t", tmp_path / "a", rank=2)
    assert not list(tmp_path.iterdir())
    host.export_peft("t", tmp_path / "a", rank=2, tolerance=1.0)
    host.export_peft("t", tmp_path / "b", tolerance=0.3)
    modules = json.loads((tmp_path / "b" / folder.REPORT).read_text())["modules"]
    ranks = {m["rank"] for m in modules.values()}
    assert all(m["error"] <= 0.3 for m in modules.values()) and 1 < min(ranks) and max(ranks) < 16
    name = "model.layers.0.self_attn.q_proj"
    delta = host.merged("t")[f"{name}.weight"] - host.weight(name)
    raw = load_file(tmp_path / "b" / TENSORS)
    low = raw[f"base_model.model.{name}.lora_B.weight"] @ raw[f"base_model.model.{name}.lora_A.weight"]
    assert ((low - delta).norm() / delta.norm()).item() == pytest.approx(modules[name]["error"], rel=1e-4)
    s = torch.linalg.svdvals(delta)
    r = modules[name]["rank"]
    assert s[r - 1 :].norm() / s.norm() > 0.3 >= s[r:].norm() / s.norm(), "the smallest rank that will do"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rank": 0}, "rank is 0; it must be 1 or more"),
        ({"foo": 1}, "unknown option of peft 'foo'"),
        ({"tolerance": -1.0}, "tolerance is -1.0"),
    ],
)
def test_export_options(host, saved, options, says):
    with pytest.raises(cw.CommonweightError, match=says):
        host.export_peft("t", saved, **options)


def test_what_no_lora_can_say(host, tmp_path):
    host.add("n", "lntuning")
    with pytest.raises(cw.CommonweightError, match="lntuning changes a norm, which LoRA cannot express"):
        host.export_peft("n", tmp_path / "a", native=False)
    host.add("m", "mos", rank=4, shards=2)
    with pytest.raises(cw.CommonweightError, match=r"mos has no format of its own in PEFT \(native=True knows adalora"):
        host.export_peft("m", tmp_path / "a", native=True)
    host.add("r", "loreft", rank=2)
    with pytest.raises(cw.CommonweightError, match="changes a block"):
        host.export_peft("r", tmp_path / "a")
    broken = host.add("b", "lora", rank=2)
    with torch.no_grad():
        next(broken.parameters()).fill_(torch.nan)
    with pytest.raises(cw.CommonweightError, match="holds NaN or infinity; nothing was written"):
        host.export_peft("b", tmp_path / "a")
    assert not list(tmp_path.iterdir())


def test_a_fresh_tenant_exports_as_nothing(host, tmp_path):
    host.add("t", "dora", rank=2)
    host.export_peft("t", tmp_path / "a")
    modules = json.loads((tmp_path / "a" / folder.REPORT).read_text())["modules"]
    assert all(m["error"] < 1e-3 for m in modules.values())


def test_rows_of_a_fused_layer(tmp_path):
    model, batch = make("gpt2")
    host = cw.Host(model, fused={"*.c_attn": 3})
    stir(host.add("t", "lora", rank=2))
    with torch.no_grad(), host.route("t"):
        want = answer(model, batch)
    host.export_peft("t", tmp_path / "a")
    with pytest.raises(cw.CommonweightError, match=r"c_attn\[0\]: PEFT adapts no part of a fused layer"):
        host.export_peft("t", tmp_path / "b", native=True)
    refused(host, tmp_path / "a", "no linear layer transformer.h.0.attn.c_attn: the host splits it")
    host.close()
    whole = cw.Host(model)
    assert whole.import_peft("x", tmp_path / "a").config.rank in (2, 6)
    with torch.no_grad(), whole.route("x"):
        torch.testing.assert_close(answer(model, batch), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_a_classifier_leaves_its_head_out(kind, tmp_path):
    host = cw.Host(Classifier(make(kind)[0]))
    tenant = stir(host.add("t", "ia3", labels=["no", "yes"]))
    host.export_peft("t", tmp_path / "a")
    host.export_peft("t", tmp_path / "b", native=True)
    left = json.loads((tmp_path / "a" / folder.REPORT).read_text())["left_out"]
    assert left == ["the classification head of 2 labels: no, yes"]
    keys = load_file(tmp_path / "b" / TENSORS)
    first = "base_model.model.encoder.layer.0" if kind == "bert" else "base_model.model.encoder.block.0"
    assert any(k.startswith(first) for k in keys)
    back = host.import_peft("u", tmp_path / "b")
    assert all(torch.equal(t, tenant.pools[n]) for n, t in back.pools.items())


def shifted_bert():
    """A BERT whose biases are not zero, as those of a trained one are not."""
    model, batch = make("bert")
    g = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith(".bias"):
                p.add_(0.1 * torch.randn(p.shape, generator=g))
    return model, batch


@pytest.mark.parametrize(
    ("method", "options", "native"),
    [("ia3", {}, False), ("bitfit", {}, False), ("lora", {"rank": 3, "bias": True}, False),
     ("lora", {"rank": 3, "alpha": 5.0, "bias": True, "rslora": True}, True)],
)  # fmt: skip
def test_changed_biases_there_and_back(method, options, native, tmp_path):
    model, batch = shifted_bert()
    host = cw.Host(model)
    stir(host.add("t", method, sites="*.query|*.value|*.intermediate.dense", **options))
    host.export_peft("t", tmp_path / "a", native=native)
    raw = load_file(tmp_path / "a" / TENSORS)
    assert any(v.any() for k, v in raw.items() if k.endswith("lora_B.bias"))
    back = host.import_peft("x", tmp_path / "a")
    assert back.config.bias
    with torch.no_grad():
        with host.route("t"):
            want = answer(model, batch)
        with host.route("x"):
            torch.testing.assert_close(answer(model, batch), want, rtol=1e-4, atol=1e-5)
        with host.route(["t", "x", None, "x"]):
            torch.testing.assert_close(answer(model, batch)[:2], want[:2], rtol=1e-4, atol=1e-5)
    again = host.load("y", host.save("x", tmp_path / "x.safetensors"))
    assert all(torch.equal(t, again.pools[n]) for n, t in back.pools.items())


def test_a_bias_where_the_layer_has_none(host, saved):
    tensors = {k.replace("lora_B.weight", "lora_B.bias"): torch.zeros(v.shape[0]) for k, v in
               load_file(saved / TENSORS).items() if "lora_B" in k}  # fmt: skip
    edit(saved, {"lora_bias": True}, tensors)
    assert not any(n.endswith(".b") for n in host.import_peft("y", saved).pools)
    edit(saved, None, {f"{Q}.lora_B.bias": torch.ones(32)})
    refused(host, saved, "q_proj.lora_B.bias: the layer has no bias that it could change")
    edit(saved, None, {f"{Q}.lora_B.bias": torch.ones(3)})
    refused(host, saved, r"q_proj.lora_B.bias is \(3,\), the base wants \(32,\)")
    edit(saved, {"use_dora": True})
    refused(host, saved, "trained biases .lora_bias=true, .* are not supported for DoRA")


def test_an_adapter_of_a_model_with_another_head(tmp_path):
    model, batch = make("llama")
    host = cw.Host(model)
    stir(host.add("t", "lora", rank=2))
    host.export_peft("t", tmp_path / "a")
    with torch.no_grad(), host.route("t"):
        want = model.model(**batch).last_hidden_state
    host.close()
    body = cw.Host(model.model)
    body.import_peft("x", tmp_path / "a")
    with torch.no_grad(), body.route("x"):
        torch.testing.assert_close(model.model(**batch).last_hidden_state, want)
    body.export_peft("x", tmp_path / "b")
    body.close()
    again = cw.Host(model)
    again.import_peft("y", tmp_path / "b")
    with torch.no_grad(), again.route("y"):
        torch.testing.assert_close(model.model(**batch).last_hidden_state, want)


def test_truncation_is_the_best_one():
    delta = torch.diag(torch.tensor([8.0, 4.0, 2.0, 1.0]))
    low = low_rank.truncated(delta, None, 0.3)
    assert low.A.shape == (2, 4) and low.error == pytest.approx((5 / 85) ** 0.5, rel=1e-5)
    assert low_rank.truncated(delta, None, 0.0).error < 1e-6
    assert low_rank.truncated(delta, 1, 0.3).error == pytest.approx((21 / 85) ** 0.5, rel=1e-5)
    assert low_rank.truncated(torch.zeros(3, 5), None, 0.0)[2:] == (0.0, None)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3)])
def test_factors_of_too_much_rank_are_multiplied_out(shape):
    A, B = torch.randn(9, shape[1]), torch.randn(shape[0], 9)
    low = low_rank.joined([(A, B, None)], shape[0])
    assert low.A.shape[0] == 3
    torch.testing.assert_close(low.B @ low.A, B @ A)


def test_patterns_are_peft_s():
    patterns = {"q_proj": 2, r".*\.1\..*v_proj": 3, "^model.k": 5}
    assert common.by_pattern(patterns, "model.layers.0.q_proj", 0) == 2
    assert common.by_pattern(patterns, "model.layers.0.xq_proj", 0) == 0
    assert common.by_pattern(patterns, "model.layers.1.a.v_proj", 0) == 3
    assert common.by_pattern(patterns, "model.k", 0) == 5 and common.by_pattern(patterns, "x.model.k", 0) == 0
    assert re.match(rf"(.*\.)?({common.exactly('a.b')})$", "a.b")
    assert not re.match(rf"(.*\.)?({common.exactly('a.b')})$", "x.a.b")
