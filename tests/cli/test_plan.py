"""commonweight plan: a table of what tenants would cost, without any weights."""

import json

import pytest
import transformers as tf

import commonweight as cw
from commonweight.host.shapes import sites_of
from tests.cli.test_cli import call


def test_all_methods_beside_the_reference(capsys):
    code, out, err = call(capsys, "plan", "minilm-l6", "--tenants", "10000")
    assert (code, err) == (0, "")
    head, *rows, note = out.splitlines()
    assert head.split("  ")[0] == "method" and "bytes of 10,000" in head and "LoRA r16" in note
    by_name = {r.split()[0]: r for r in rows[:-1]}
    assert {"lora", "lotr", "svf", "vb-lora"} <= by_name.keys() and "probe" not in by_name
    assert rows[-1].startswith("lora rank=16, bfloat16") and rows[-1].endswith("100.000%")
    assert by_name["lora"].endswith("100.000%"), "rank 8 in float32 has the bytes of rank 16 in bfloat16"


def test_options_codec_and_json(capsys):
    code, out, _ = call(
        capsys, "plan", "minilm-l6", "-m", "lotr:rank=8,alpha=16", "-m", "lora", "--tenants", "7", "--codec", "int8",
        "--json",
    )  # fmt: skip
    told = json.loads(out)
    lotr, lora, reference = told["rows"]
    assert code == 0 and (told["tenants"], told["codec"]) == (7, "int8")
    assert lotr["label"] == "lotr rank=8 alpha=16.0" and lotr["private"] == 36 * 64 * 66 // 64
    assert lotr["total"] == lotr["common"] + 7 * lotr["private"]
    assert lora["ratio"] == pytest.approx(66 / 64 / 4) and reference["ratio"] == 1.0


def test_widths_that_do_not_fit_are_left_out(capsys, tmp_path):
    """The keys and values of one head of width 6, of which mos makes no four shards."""
    sizes = {"hidden_size": 24, "num_attention_heads": 4, "num_key_value_heads": 1, "intermediate_size": 16}
    tf.LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=32).save_pretrained(tmp_path)
    code, out, _ = call(capsys, "plan", tmp_path, "-m", "mos", "--json")
    one = cw.plan("mos", [s for s in sites_of(tmp_path) if s.out != 6 and s.kind == "linear"])
    assert code == 0 and json.loads(out)["rows"][0]["trainable"] == one.count()
    code, out, _ = call(capsys, "plan", tmp_path)
    assert code == 0 and {"mos", "lora"} <= {line.split()[0] for line in out.splitlines()}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["minilm"], "unknown model 'minilm'; did you mean 'minilm-l6'"),
        (["minilm-l6", "-m", "lotra"], "unknown method 'lotra'; did you mean"),
        (["minilm-l6", "-m", "lotr:rnk=8"], "unknown option of LoTR 'rnk'; did you mean 'rank'"),
        (["minilm-l6", "-m", "lotr:rank=0"], "rank is 0; it must be >= 1"),
        (["minilm-l6", "-m", "lotr:rank"], "option 'rank': wanted name=value"),
        (["minilm-l6", "--codec", "int9"], "unknown codec 'int9'"),
        (["minilm-l6", "-m", "lora", "--codec", "compeft"], "choose bfloat16, int8 or int4"),
        (
            ["minilm-l6", "-m", "lora", "--codec", "onebit"],
            "lora: codec onebit stores matrices of two values",
        ),
    ],
)
def test_mistakes(capsys, arguments, message):
    code, out, err = call(capsys, "plan", *arguments)
    assert (code, out) == (2, "") and message in err and "Traceback" not in err
