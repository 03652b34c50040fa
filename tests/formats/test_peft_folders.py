"""PEFT's folders as others leave them: digests, prefixes of wrappers, folders in folders, counts that nothing holds."""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

import commonweight as cw
from commonweight.commons.adapters import adapters
from commonweight.core.readable import CONFIG_BYTES
from commonweight.formats.peft import digest, folder, keys, layout
from tests.drawn import drawn
from tests.formats.test_peft import edit, refused
from tests.laws.subjects import stir
from tests.models import answer, make


@pytest.fixture
def host():
    return cw.Host(make("llama")[0])


@pytest.fixture
def saved(host, tmp_path):
    stir(host.add("t", "lora", rank=2, sites="*.q_proj|*.v_proj"))
    return host.export_peft("t", tmp_path / "a")


def same(host, a, b):
    """Both tenants give the same answers, which are not the base's."""
    batch, out = make("llama")[1], []
    with torch.no_grad():
        base = answer(host.model, batch)
        for name in (a, b):
            with host.route(name):
                out.append(answer(host.model, batch))
    torch.testing.assert_close(out[1], out[0], rtol=1e-6, atol=1e-6)
    assert (out[0] - base).abs().max() > 1e-3


def rekey(saved, change):
    tensors = load_file(saved / folder.TENSORS)
    edit(saved)
    save_file({change(k): v for k, v in tensors.items()}, saved / folder.TENSORS)


# -- digests -----------------------------------------------------------------------------------------------------------


def test_digests_are_those_of_the_files(saved):
    told = json.loads((saved / folder.REPORT).read_text())[digest.KEY]
    assert told == {n: hashlib.sha256((saved / n).read_bytes()).hexdigest() for n in (folder.CONFIG, folder.TENSORS)}


def test_a_change_of_another_tool_is_told(host, saved):
    tensors = load_file(saved / folder.TENSORS)
    save_file({k: v + 1e-3 for k, v in tensors.items()}, saved / folder.TENSORS)
    refused(host, saved, "adapter_model.safetensors: not as commonweight wrote it: .* if the change is meant, remove")
    (saved / folder.REPORT).unlink()
    host.import_peft("x", saved)


def test_a_flipped_bit_and_a_lost_file(host, saved):
    data = bytearray((saved / folder.TENSORS).read_bytes())
    data[-1] ^= 1
    (saved / folder.TENSORS).write_bytes(data)
    refused(host, saved, "not as commonweight wrote it")
    (saved / folder.CONFIG).write_text((saved / folder.CONFIG).read_text().replace('"r": 2', '"r": 3'))
    refused(host, saved, "adapter_config.json: not as commonweight wrote it")
    (saved / folder.REPORT).write_text("{")
    refused(host, saved, "report.json: cannot be read .* so the digests of the adapter cannot be checked")


@pytest.mark.parametrize("report", ["[]", "{}", '{"sha256": 3}', '{"sha256": {"../x": "00", "a": 5}}'])
def test_a_report_of_another_tool_has_no_digests(host, saved, report):
    (saved / folder.REPORT).write_text(report)
    host.import_peft("x", saved)
    same(host, "t", "x")


# -- keys --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        lambda k: f"module.{k}",
        lambda k: f"_orig_mod.{k}",
        lambda k: f"module._orig_mod.{k}",
        lambda k: k.replace("base_model.model.", "base_model.model.module."),
        lambda k: k.replace("base_model.model.", "base_model.model._orig_mod."),
        lambda k: k.replace(".self_attn", "._fsdp_wrapped_module._checkpoint_wrapped_module.self_attn"),
        lambda k: k.removeprefix("base_model.model."),
        lambda k: k.removeprefix("base_model.model.model."),
        lambda k: k.replace(".weight", ".default.weight"),
        lambda k: f"model.{k}".replace(".weight", ".mine.weight"),
    ],
)
def test_keys_of_wrapped_models_are_read(host, saved, change):
    rekey(saved, change)
    host.import_peft("x", saved)
    same(host, "t", "x")


def test_patterns_of_a_compiled_model_hold_for_the_plain_one(host, saved):
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    tensors = load_file(saved / folder.TENSORS)
    tensors |= {f"{name}A.weight": torch.ones(1, 32), f"{name}B.weight": torch.ones(32, 1)}
    pattern = r"^_orig_mod\.model\.layers\.0\.self_attn\.q_proj"
    edit(saved, {"rank_pattern": {pattern: 1}, "alpha_pattern": {pattern: 5}})
    save_file({k.replace("model.model.", "model._orig_mod.model."): v for k, v in tensors.items()},
              saved / folder.TENSORS)  # fmt: skip
    assert dict(host.import_peft("x", saved).config.alphas) == {"model.layers.0.self_attn.q_proj": 5.0}


def test_keys_that_become_one_and_states_of_several_adapters(host, saved):
    tensors = load_file(saved / folder.TENSORS)
    edit(saved, tensors={f"module.{k}": v.clone() for k, v in tensors.items()})
    refused(host, saved, "are both .* without the prefixes of wrappers; keep one")
    edit(saved, tensors={f"module.{k}": None for k in tensors})
    edit(saved, tensors={k.replace("lora_A.", f"lora_A.{n}."): v.clone() for n in "ab" for k, v in tensors.items()})
    refused(host, saved, r"a state dict of 2 adapters \(a, b\); save each with PEFT's save_pretrained")


class Wrapper(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, **inputs):
        return self.module(**inputs)


@pytest.mark.parametrize("wrap", [Wrapper, lambda m: torch.compile(m, backend="eager")])
@pytest.mark.parametrize("native", [None, False])
def test_a_wrapped_host_writes_plain_names_and_reads_them(wrap, native, tmp_path):
    inner, batch = make("llama")
    host = cw.Host(wrap(inner))
    stir(host.add("t", "dora", rank=2))
    at = host.export_peft("t", tmp_path / "a", native=native)
    names = [*load_file(at / folder.TENSORS), *json.loads((at / folder.REPORT).read_text())["modules"]]
    assert all(k.removeprefix("base_model.model.").startswith("model.layers.") for k in names)
    host.import_peft("x", at)
    plain = cw.Host(make("llama")[0])
    plain.import_peft("x", at)
    with torch.no_grad(), host.route("t"):
        want = inner(**batch).logits
    for h, model in ((host, inner), (plain, plain.model)):
        with torch.no_grad(), h.route("x"):
            torch.testing.assert_close(model(**batch).logits, want, rtol=1e-3, atol=1e-3)


# -- folders in folders ------------------------------------------------------------------------------------------------


def put(at):
    at.mkdir(parents=True)
    (at / folder.CONFIG).write_text('{"peft_type": "LORA"}')


def test_an_adapter_in_an_adapter_is_taken_along(tmp_path):
    for name in ("runs/both", "runs/both/second", "runs/one", "runs/notes/deep/down"):
        put(tmp_path / name)
    assert sorted(adapters([tmp_path / "runs" / "both"])) == ["both", "second"]
    assert sorted(adapters([tmp_path / "runs"])) == ["both", "one", "second"]
    assert adapters([tmp_path / "runs", tmp_path / "runs" / "one"])["one"] == tmp_path / "runs" / "one"
    put(tmp_path / "more" / "second")
    with pytest.raises(cw.CommonweightError, match="another adapter is called 'second' too"):
        adapters([tmp_path / "runs", tmp_path / "more"])


def test_checkpoints_beside_a_finished_adapter_are_told(tmp_path):
    for name in ("out", "out/checkpoint-5", "out/checkpoint-10"):
        put(tmp_path / name)
    with pytest.warns(UserWarning, match=r"out: 2 checkpoints of its training are left out \(checkpoint-10, ...\)"):
        assert list(adapters([tmp_path / "out"])) == ["out"]
    with pytest.warns(UserWarning, match="out: 1 checkpoints"):
        assert sorted(adapters([tmp_path / "out", tmp_path / "out" / "checkpoint-5"])) == ["checkpoint-5", "out"]
    (tmp_path / "out" / folder.CONFIG).unlink()
    assert sorted(adapters([tmp_path / "out"])) == ["checkpoint-10", "checkpoint-5"]


def test_the_cache_of_the_hub(host, saved, tmp_path):
    repository = tmp_path / "models--some--adapter"
    shutil.copytree(saved, repository / "snapshots" / "abc")
    put(repository / "snapshots" / "def")
    with pytest.raises(cw.CommonweightError, match="holds 2 snapshots and no refs/main says which; name one"):
        adapters([repository])
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert adapters([repository]) == {"adapter": repository / "snapshots" / "abc"}
    assert list(adapters([repository / "snapshots" / "def"])) == ["adapter"]
    host.import_peft("x", repository)
    same(host, "t", "x")


def test_a_folder_that_is_none(host, saved, tmp_path, monkeypatch):
    refused(host, tmp_path, "has no adapter_config.json; .* adapters lie in it: a. Name one of them")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(cw.CommonweightError, match=r"some/adapter: no such folder; .* hf download some/adapter"):
        layout.found(layout.Path("some/adapter"))


# -- what a file may say -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tensors", "more", "says"),
    [
        ("VERA", {"vera_lambda_d": 2, "vera_lambda_b": 32}, {"r": 10**12}, r"lambda_d is \(2,\), its config wants"),
        ("VERA", {"vera_lambda_d": 2, "vera_lambda_b": 32}, {"r": 2, "projection_prng_key": 10**30}, "wanted a seed"),
        ("RANDLORA", {"randlora_lambda": (2, 16), "randlora_gamma": (16, 32)}, {"r": 10**12}, "randlora_lambda is"),
        ("OFT", {"oft_R.weight": (4, 28)}, {"num_cayley_neumann_terms": 10**9}, "wanted 1, 2, ..., 1,000 at most"),
        ("LORA", {"lora_A.weight": (2, 32), "lora_B.weight": (32, 2)}, {"r": 10**15}, "its rank and the base want"),
        ("LORA", {"lora_A.weight": (0, 32), "lora_B.weight": (32, 0)}, {"r": 2}, r"is \(0, 32\)"),
    ],
)  # fmt: skip
def test_counts_that_no_tensor_holds(host, tmp_path, kind, tensors, more, says):
    q = "base_model.model.model.layers.0.self_attn.q_proj"
    config = {"peft_type": kind, "save_projection": False, "projection_prng_key": 0, **more}
    (tmp_path / folder.CONFIG).write_text(json.dumps(config))
    save_file({f"{q}.{n}": torch.zeros(s) for n, s in tensors.items()}, tmp_path / folder.TENSORS)
    refused(host, tmp_path, says)


def test_a_config_is_bounded_and_numbers_are_numbers(host, saved):
    edit(saved, {"note": "x" * (CONFIG_BYTES + 1)})
    refused(host, saved, "bytes; a config has at most 16,777,216")
    edit(saved, {"note": None})
    tensors = load_file(saved / folder.TENSORS)
    for dtype, says in ((torch.bool, "is of torch.bool"), (torch.complex64, "is of torch.complex64"),
                        (torch.int64, "is of torch.int64, lora wants float32")):  # fmt: skip
        edit(saved, tensors={k: v.to(dtype) for k, v in tensors.items()})
        refused(host, saved, says)


@drawn(60)
@given(at=st.integers(0, 10**6), to=st.binary(min_size=1, max_size=9), cut=st.booleans())
def test_bytes_of_the_tensors_at_random(host, saved, at, to, cut):
    work = saved.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(saved, work)
    edit(work)
    data = (work / folder.TENSORS).read_bytes()
    at %= len(data)
    (work / folder.TENSORS).write_bytes(data[:at] + to + (b"" if cut else data[at + len(to) :]))
    try:
        host.import_peft("x", work)
        host.remove("x")
    except cw.CommonweightError as e:
        assert str(work) in str(e)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    ["r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "bias", "lora_bias", "modules_to_save",
     "target_parameters", "target_modules", "init_lora_weights", "eva_config", "task_type", "auto_mapping"]
)  # fmt: skip


@drawn(100)
@given(more=st.dictionaries(FIELDS, JSON, min_size=1, max_size=3), labels=st.sampled_from([None, (), ["a", "b"]]))
def test_any_value_in_a_config(host, saved, more, labels):
    work = saved.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    shutil.copytree(saved, work)
    edit(work, more)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # a pattern drawn at random may be an odd regular expression
        warnings.simplefilter("ignore", DeprecationWarning)
        try:
            host.import_peft("x", work, labels=labels)
            host.remove("x")
        except cw.CommonweightError as e:
            assert str(work) in str(e)


def test_names_without_wrappers():
    assert keys.bare("_orig_mod.model.layers.0._orig_mod.q") == "model.layers.0.q"
    assert keys.bare("module.q") == "module.q", "a model's own name, where nothing says otherwise"
    own = keys.plain({"base_model.model.module.q.lora_A.weight": torch.ones(1)}, {"module"})
    assert list(own) == ["base_model.model.module.q.lora_A.weight"]
