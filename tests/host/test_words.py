"""A tokenizer beside an adapter is told where it is another than the base's."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import transformers as tf

import commonweight as cw
from tests.adapt import tiny


@pytest.fixture
def base(tmp_path) -> Path:
    return tiny.base(tmp_path / "base", "llama")


def adapter(base: Path, folder: Path) -> tuple[Path, Any]:
    """(a folder of PEFT with the base's tokenizer in it, that tokenizer)."""
    host = cw.Host(tf.AutoModelForCausalLM.from_pretrained(base))
    host.add("t", "lora", rank=2)
    host.export_peft("t", folder)
    words = tf.AutoTokenizer.from_pretrained(base)
    words.save_pretrained(folder)
    return folder, words


def told(base: Path, folder: Path) -> list[str]:
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        cw.Host(tf.AutoModelForCausalLM.from_pretrained(base)).load_adapter(folder, "t")
    return [str(w.message) for w in seen if "tokenizer" in str(w.message)]


def test_the_same_tokenizer_is_not_worth_a_word(base, tmp_path):
    assert told(base, adapter(base, tmp_path / "a")[0]) == []


def test_added_tokens_and_templates_are_named_with_what_reads_them(base, tmp_path):
    folder, words = adapter(base, tmp_path / "a")
    words.add_tokens(["<tool>", "</tool>"])
    words.save_pretrained(folder)
    (line,) = told(base, folder)
    assert "its tokenizer has 2 added tokens ('<tool>', '</tool>') that the base's has not" in line
    assert f"--tokenizer {folder}" in line and "Engine(tokenizer=" in line
    words.chat_template = tiny.CHAT
    words.save_pretrained(folder)
    assert "2 added tokens ('<tool>', '</tool>') and a chat template" in told(base, folder)[0]
    other = tf.AutoTokenizer.from_pretrained(base)
    other.chat_template = "{{ messages[0].content }}"
    other.save_pretrained(base)
    assert "another chat template" in told(base, folder)[0]


@pytest.mark.parametrize("text", ["[]", "{", json.dumps({"added_tokens": [1, {"id": "x"}], "chat_template": 3})])
def test_damaged_files_are_no_tokenizer(base, tmp_path, text):
    folder, _ = adapter(base, tmp_path / "a")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text(text)
    assert told(base, folder) == []
