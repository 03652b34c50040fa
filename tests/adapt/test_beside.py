"""Training what a tenant holds beside its method, and tokens that were added."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.adapt import beside, run
from commonweight.adapt.base import open_host
from tests.adapt import tiny


@pytest.mark.parametrize(
    ("text", "wanted"),
    [("5", [5]), ("5,7, 9-11", [5, 7, 9, 10, 11]), ([3, 4], [3, 4]), ({"a": "1-2"}, {"a": [1, 2]}), ("added", "added"),
     (None, None)],
)  # fmt: skip
def test_rows(text, wanted):
    assert beside.rows(text) == wanted


def test_modules():
    assert beside.modules("a, b|c") == ["a", "b", "c"] and beside.modules(["x"]) == ["x"]
    assert beside.modules(None) is None
    with pytest.raises(cw.CommonweightError, match=r"modules_to_save: .* wanted names"):
        beside.modules("a,,b")


@pytest.mark.parametrize("text", ["", "a", "5-3", "1,,2", "-1", "0-99999999", ["a"], 1.5])
def test_rows_that_are_none(text):
    with pytest.raises(cw.CommonweightError, match=r"token_rows: .* wanted numbers, as in"):
        beside.rows(text)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"prompt": f"w{i} w1", "completion": f"w{i + 1} <tool>" if i % 2 else "w3"} for i in range(8)]
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_run_trains_and_writes_them(tmp_path, data):
    model = tiny.base(tmp_path / "model", "llama")
    out = tmp_path / "t.safetensors"
    run(str(model), str(data), out, task="lm", method="lora", modules_to_save="norm", token_rows="5,7", epochs=1,
        say=lambda _: None)  # fmt: skip
    told = json.loads(out.with_suffix(".json").read_text())
    assert told["modules_to_save"] == ["norm"] and told["token_rows"] == [5, 7]
    host = open_host(model, "lm")
    tenant = host.load("t", out)
    assert "model.norm" in tenant.beside.copies and tenant.beside.rows == (("model.embed_tokens", (5, 7)),)
    moved = tenant.pools["model.norm.W"] - host.weight("model.norm").float()
    assert moved.abs().max() > 0


def test_tokens_that_were_added_to_the_tokenizer(tmp_path, data):
    """Without a word about them the run ends before its first step; with it the base grows; the file brings them."""
    model = tiny.base(tmp_path / "model", "llama")
    with pytest.raises(cw.CommonweightError, match="none were added"):
        run(str(model), str(data), tmp_path / "x.safetensors", task="lm", method="lora", token_rows="added",
            say=lambda _: None)  # fmt: skip
    tokenizer = tf.AutoTokenizer.from_pretrained(model)
    tokenizer.add_tokens(["<tool>", "<other>"])
    tokenizer.save_pretrained(model)
    with pytest.raises(cw.CommonweightError, match=r"a row has the token '<tool>', number 44, .* --token-rows added"):
        run(str(model), str(data), tmp_path / "x.safetensors", task="lm", method="lora", say=lambda _: None)
    out = tmp_path / "t.safetensors"
    run(str(model), str(data), out, task="lm", method="lora", token_rows="added", epochs=1, say=lambda _: None)
    host = open_host(model, "lm")
    tenant = host.load("t", out)
    assert dict(tenant.beside.rows) == {"lm_head": (44, 45), "model.embed_tokens": (44, 45)}
    assert (tenant.vocabulary, host.base.vocabulary) == (46, 46)
    ids = torch.tensor([[5, 44, 6]])
    with torch.no_grad(), host.route("t"):
        assert host.model(ids).logits.isfinite().all()
    with torch.no_grad():
        assert torch.isneginf(host.model(ids[:, :1]).logits[..., 44:]).all()
