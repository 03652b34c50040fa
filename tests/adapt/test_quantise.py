"""A base that is quantised as it is loaded."""

from __future__ import annotations

import json

import pytest
import torch
import transformers

import commonweight as cw
from commonweight.adapt import open_host, quantise
from commonweight.adapt.base import where
from commonweight.adapt.names import EXPERTS, QUANTISED
from commonweight.formats.native import read_header
from commonweight.host.origin import quantised
from tests.adapt import tiny
from tests.host.quantised import llama as small
from tests.host.quantised import there

pytestmark = pytest.mark.filterwarnings("ignore")  # of the libraries
needs_bitsandbytes = pytest.mark.skipif(not there("bitsandbytes"), reason="bitsandbytes is not installed")


def test_a_form_that_is_unknown():
    with pytest.raises(cw.CommonweightError, match=r"unknown quantize 'nf8'.*nf4"):
        quantise.configuration("nf8", torch.float32)


@pytest.mark.parametrize(
    ("form", "library"), [("nf4", "bitsandbytes"), ("torchao-int8", "torchao"), ("quanto-int4", "optimum-quanto")]
)
def test_a_library_that_is_missing(form, library, monkeypatch):
    monkeypatch.setattr(quantise, "find_spec", lambda name: None)
    with pytest.raises(cw.CommonweightError, match=rf"{library}, which is not installed: .*commonweight\[quantize\]"):
        quantise.configuration(form, torch.float32)


NEEDS = {"torchao": "torchao", "quanto": "optimum.quanto"}


@pytest.mark.parametrize(
    "form",
    [
        pytest.param(
            f, marks=pytest.mark.skipif(not there(NEEDS.get(f.split("-")[0], "bitsandbytes")), reason="missing")
        )
        for f in QUANTISED
    ],
)
@pytest.mark.parametrize("task", ["lm", "classify"])
def test_a_host_is_opened_on_a_quantised_base(form, task, llama):
    host = open_host(llama, task, dtype="float32", quantize=form)
    told = quantised(host.model)
    assert told and (told.startswith(form.split("-")[0]) or told.startswith(("bitsandbytes", "optimum")))
    host.add("a", "lora", rank=2, labels=2 if task == "classify" else None)
    ids = torch.randint(0, 20, (2, 6))
    with host.route("a"):
        host.model(input_ids=ids).logits.float().square().mean().backward()
    assert all(p.grad is not None for p in host["a"].parameters())


@needs_bitsandbytes
@pytest.mark.parametrize("form", EXPERTS)
def test_rows_that_fill_no_blocks_stay_in_float_on_a_cpu(form, tmp_path):
    """bitsandbytes 0.50.2's kernel computes such layers with other numbers than it packed."""
    model, ids = small(intermediate_size=160), torch.randint(3, 40, (3, 6))
    with torch.no_grad():
        for p in (p for p in model.parameters() if p.dim() > 1):
            p.normal_(0, 0.2)
    model.save_pretrained(tmp_path / "m")
    tiny.tokenizer(tmp_path / "m", "llama")
    with pytest.warns(
        UserWarning, match=r"packed but for .*layers \d+%.*its layers, \d+%, are left as they were; of rows"
    ):
        host = open_host(tmp_path / "m", "lm", dtype="float32", quantize=form)
    layers = host.base.inner.model.layers[0]
    assert type(layers.mlp.down_proj) is torch.nn.Linear and hasattr(layers.mlp.up_proj.weight, "quant_state")
    assert torch.equal(layers.mlp.down_proj.weight, model.model.layers[0].mlp.down_proj.weight)
    assert quantised(host.model) == f"bitsandbytes {form.replace('-', ' ')}" and "(layers " in where(host)
    merged = host.merged_model(host.add("t", "lora", rank=2).name)
    with torch.no_grad():
        want = host.base.model(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, want)
        path = host.save("t", tmp_path / "t.safetensors")
        for other in (None, form):
            open_host(tmp_path / "m", "lm", dtype="float32", quantize=other).load("t", path)
        host.close()
        host.model.save_pretrained(tmp_path / "packed")  # which says what it leaves
        again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "packed", dtype=torch.float32)
        torch.testing.assert_close(cw.Host(again.eval()).base.model(input_ids=ids).logits, want)


@needs_bitsandbytes
def test_the_command_line_trains_on_a_quantised_base(llama, tmp_path):
    from typer.testing import CliRunner

    from commonweight.cli import app

    rows = tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"text": "the court ruled today"}) for _ in range(4)))
    out = tmp_path / "t.safetensors"
    args = ["adapt", str(llama), str(rows), "--task", "lm", "--out", str(out), "--epochs", "1", "--method", "lora"]
    done = CliRunner().invoke(app, [*args, "--dtype", "float32", "--quantize", "nf4"])
    assert done.exit_code == 0, done.output
    assert "packed as bitsandbytes nf4" in done.output
    header = read_header(out)
    assert header["quantised"] == "bitsandbytes nf4" and header["float"]
    plain = open_host(llama, "lm", dtype="float32")
    plain.load("t", out)
    assert json.loads(out.with_suffix(".json").read_text())["settings"]["quantised"] == "bitsandbytes nf4"
    bad = CliRunner().invoke(app, [*args, "--quantize", "int3"])
    assert bad.exit_code != 0 and "unknown quantize 'int3'" in str(bad.exception)


@pytest.mark.parametrize(("kind", "left"), [("mamba", ["lm_head", "dt_proj"]), ("llama", None)])
def test_what_transformers_reads_past_the_module_is_not_packed(kind, left, tmp_path):
    transformers.AutoConfig.for_model(kind).save_pretrained(tmp_path)
    assert quantise._left(tmp_path) == left
    assert quantise._left(None) is None
