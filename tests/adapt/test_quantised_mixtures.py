"""A mixture that is quantised as it is loaded: its experts are packed where a library can, and what is not is told."""

from __future__ import annotations

import json
import warnings
from typing import Any

import pytest
import torch

from commonweight.adapt import adapt, base, open_host, quantise
from commonweight.formats.native import read_header
from commonweight.host.origin import quantised
from tests.adapt import tiny
from tests.host.quantised import there
from tests.laws.subjects import stir
from tests.mixtures import MIXTURES
from tests.models import VOCAB

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of the libraries
    pytest.mark.skipif(not there("bitsandbytes"), reason="bitsandbytes is not installed"),
]
KINDS = ("mixtral", "qwen3_moe", "deepseek_v3", "olmoe", "gpt_oss", "llama4")
BATCH = {"input_ids": torch.randint(3, VOCAB, (4, 6), generator=torch.Generator().manual_seed(1))}
ROWS = [{"text": f"w{i % 9} w{(2 * i) % 9} w{(i + 1) % 9}"} for i in range(8)]


def wide(kind, width=64):
    """With rows that blocks of 64 fit into, of experts blocks of 32."""
    config: Any = MIXTURES[kind]().config
    config.hidden_size = 64
    if kind == "gpt_oss":
        config.head_dim = 16
    for name in ("intermediate_size", "moe_intermediate_size"):
        if hasattr(config, name):
            setattr(config, name, 32 if name.startswith("moe") else width)
    torch.manual_seed(0)
    model = type(MIXTURES[kind]())(config)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "experts" in n or "gate" in n or "router" in n:
                p.normal_(0, 0.2)
    return model.eval()


def folder(at, kind):
    wide(kind).save_pretrained(at / kind)
    tiny.tokenizer(at / kind, "llama")
    return at / kind


def bits(model):
    return sum(p.numel() * p.element_size() for p in model.parameters())


def logits(host, *route):
    with torch.no_grad(), host.route(*route):
        return host.base.model(**BATCH).logits


@pytest.mark.parametrize("form", ["nf4", "nf4-double", "fp4"])
@pytest.mark.parametrize("kind", KINDS)
def test_experts_are_packed_as_they_are_loaded(kind, form, tmp_path):
    from bitsandbytes.nn.parametrize import replace_parameter_4bit

    at, model = folder(tmp_path, kind), wide(kind)
    host = open_host(at, "lm", dtype="float32", quantize=form)
    assert quantised(host.model) == f"bitsandbytes {form.replace('-', ' ')}"
    experts = [m for n, m in host.base.modules.items() if m.kind == "expert"]
    assert experts and all(m.pack is not None for m in experts)
    assert "experts" not in base.where(host) and "packed as bitsandbytes" in base.where(host)
    assert "embeddings" in base.where(host) and "heads" in base.where(host)
    # the numbers are those of the library's own packing of the whole tensor
    for m in experts:
        old = model.get_submodule(m.key.rpartition(".")[0])
        size = 64 if getattr(old, m.slot).shape[-1] % 64 == 0 else 32
        replace_parameter_4bit(old, m.slot, "double" in form, form.partition("-")[0], size)
        want = getattr(old, m.slot)
        assert torch.equal(m.weight.view(m.count, m.out, m.inp), want.mT if m.turned else want)
    inner = host.base.inner
    assert inner.config.quantization_config.quant_method == inner.quantization_method == "bitsandbytes"
    assert inner.config.to_dict()["quantization_config"]["quant_method"] == "bitsandbytes"
    plain = open_host(at, "lm", dtype="float32")
    assert host.base.every == plain.base.every
    assert bits(host.model) < 0.5 * bits(plain.model)
    assert not torch.equal(logits(host, None), logits(plain, None))


@pytest.mark.parametrize("kind", ["mixtral", "gpt_oss"])
def test_a_tenant_is_trained_resumed_saved_loaded_and_merged(kind, tmp_path):
    at = folder(tmp_path, kind)

    def opened():
        return open_host(at, "lm", dtype="float32", quantize="nf4")

    def train(host, **how):
        return adapt(host, "t", ROWS, task="lm", method="lora", epochs=2, batch_size=4, checkpoint_every=1, **how)

    def stop(p):
        if p.step == 2:
            raise KeyboardInterrupt

    host = opened()
    train(host, sites="*experts*|*.q_proj", checkpoint=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        train(opened(), sites="*experts*|*.q_proj", checkpoint=tmp_path / "c", progress=stop)
    again = opened()
    train(again, sites="*experts*|*.q_proj", checkpoint=tmp_path / "c", resume=True)
    for n, p in host["t"].named_parameters():
        assert p.count_nonzero() and torch.equal(p, again["t"].pools[n]), n
    want = logits(host, "t")
    assert not torch.allclose(want, logits(host, None), atol=1e-5)
    torch.testing.assert_close(logits(host, ["t", None, "t", None])[::2], want[::2], rtol=1e-4, atol=1e-5)

    path = host.save("t", tmp_path / "t.safetensors")
    assert read_header(path)["quantised"] == "bitsandbytes nf4" and read_header(path)["float"]
    new = opened()
    new.load("t", path)
    torch.testing.assert_close(logits(new, "t"), want)
    for other in (None, "int8", "fp4"):
        open_host(at, "lm", dtype="float32", quantize=other).load("t", path)

    model = host.merged_model("t")
    with torch.no_grad():
        torch.testing.assert_close(model(**BATCH).logits, want, rtol=1e-4, atol=1e-5)
    packed, held = host.merged("t", requantise=True), host.base.inner.state_dict()
    assert any(k.endswith("gate_up_proj.absmax") for k in packed)
    assert all(packed[k].shape == held[k].shape and packed[k].dtype == held[k].dtype for k in packed if k in held)
    assert {k for k in packed} <= {*held}


@pytest.mark.parametrize("form", ["int8", "torchao-int8"])
def test_experts_that_are_not_packed_are_told(form, tmp_path):
    if not there(form.split("-")[0]) and form != "int8":
        pytest.skip("torchao is not installed")
    at = folder(tmp_path, "mixtral")
    with pytest.warns(
        UserWarning, match=rf"quantize='{form}': the base is packed but for (\d+)% of the weights \(experts"
    ):
        host = open_host(at, "lm", dtype="float32", quantize=form)
    assert " but for " in base.where(host) and "(experts " in base.where(host)


def test_experts_that_the_library_cannot_pack_are_told(tmp_path, monkeypatch):
    monkeypatch.setattr("commonweight.adapt.expert_packs.runs", lambda module: False)
    at = folder(tmp_path, "mixtral")
    with pytest.warns(UserWarning, match=r"its experts, \d+%, are left as they were$"):
        host = open_host(at, "lm", dtype="float32", quantize="nf4")
    assert quantised(host.model) == "bitsandbytes nf4" and "(experts " in base.where(host)


def test_experts_whose_rows_fill_no_blocks_are_left_and_told(tmp_path):
    """bitsandbytes 0.50.2 packs them, and its kernel for CPUs then reads other numbers."""
    wide("mixtral", 48).save_pretrained(tmp_path / "m")
    with pytest.warns(UserWarning, match=r"its experts, \d+%, are left as they were$"):
        host = open_host(tmp_path / "m", "lm", dtype="float32", quantize="nf4")
    found = {m.slot: m.pack is not None for m in host.base.modules.values() if m.kind == "expert"}
    assert found == {"gate_up_proj": True, "down_proj": False}
    assert "(experts 2" in base.where(host)
    stir(host.add("t", "lora", sites="*experts*", rank=2))
    with torch.no_grad():
        model = host.merged_model("t")
        torch.testing.assert_close(model(**BATCH).logits, logits(host, "t"), rtol=1e-4, atol=1e-5)


def test_a_dense_model_does_not_warn(llama):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="quantize=")
        open_host(llama, "lm", dtype="float32", quantize="int8")


def test_the_command_line_says_what_is_packed(tmp_path):
    from typer.testing import CliRunner

    from commonweight.cli import app

    at, rows = folder(tmp_path, "qwen3_moe"), tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps(r) for r in ROWS))
    args = ["adapt", str(at), str(rows), "--task", "lm", "--epochs", "1", "--method", "lora", "--dtype", "float32"]
    for form, told in (("nf4", r"packed as bitsandbytes nf4 but for"), ("int8", "packed as bitsandbytes int8 but for")):
        out = tmp_path / f"{form}.safetensors"
        done = CliRunner().invoke(app, [*args, "--quantize", form, "--out", str(out)])
        assert done.exit_code == 0, done.output
        assert told in done.output and ("(experts" in done.output) == (form == "int8")


def test_libraries_without_packed_experts_pack_the_rest(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "commonweight.adapt.expert_packs", None)
    assert quantise.configuration("nf4", torch.float32).quant_method == "bitsandbytes"
