"""commonweight statistics: from a model's folder and rows to one file that the merge methods take."""

import json

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

import commonweight as cw
from commonweight.merge import open_statistics
from tests.adapt import tiny

from .test_cli import call


@pytest.fixture(scope="module")
def classifiers(tmp_path_factory):
    """Two fine-tuned models of one base."""
    folders = [tmp_path_factory.mktemp(f"model{i}") for i in range(2)]
    torch.manual_seed(0)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=44)
    names = {i: n for i, n in enumerate(("food", "law", "sport"))}
    config = tf.BertConfig(**size, max_position_embeddings=64, id2label=names, initializer_range=0.2)
    model = tf.BertForSequenceClassification(config)
    for folder in folders:
        model.save_pretrained(folder)
        tiny.tokenizer(folder, "bert")
        with torch.no_grad():
            for p in model.parameters():
                p.add_(0.02 * torch.randn_like(p))
    return folders


def test_fisher_and_gram_of_two_models_merge_them(capsys, tmp_path, classifiers):
    data = tiny.tsv(tmp_path / "train.tsv", tiny.rows(12))
    files = []
    for i, folder in enumerate(classifiers):
        files.append(tmp_path / f"{i}.safetensors")
        args = ["statistics", folder, data, "--rows", "3", "--batch-size", 2 - i, "--out", files[-1]]
        code, out, err = call(capsys, *args)
        assert code == 0, err
        size = files[-1].stat().st_size
        assert out == f"{files[-1]}: fisher, gram of 3 rows, {size:,} bytes\n"
    headers = [open_statistics(f, "it").header for f in files]
    assert headers[0]["rows"] == headers[1]["rows"] and headers[0]["rows"].startswith("3 rows ")
    assert headers[0]["fingerprint"] != headers[1]["fingerprint"] and headers[0]["labels"] == "exact"
    models = [f / "model.safetensors" for f in classifiers]
    for merged in (cw.merge.fisher(models, statistics=files), cw.merge.regmean(models, statistics=files)):
        assert merged.keys() == load_file(models[0]).keys()
        back = tf.BertForSequenceClassification.from_pretrained(classifiers[0])
        back.load_state_dict(merged)


def test_the_same_rows_and_seed_give_the_same_bytes(capsys, tmp_path, classifiers):
    data = tiny.jsonl(tmp_path / "train.jsonl", tiny.rows(8))
    common = ["statistics", classifiers[0], data, "--labels", "data", "--kinds", "fisher", "--rows", "2"]
    for name in ("a", "b"):
        assert call(capsys, *common, "--out", tmp_path / f"{name}.safetensors")[0] == 0
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_language_models_and_bare_encoders(capsys, tmp_path, llama, bert):
    data = tiny.jsonl(tmp_path / "train.jsonl", [{"text": r["text"]} for r in tiny.rows(2)])
    out = tmp_path / "s.safetensors"
    args = ["--task", "lm", "--kinds", "fisher,gram,activations", "--tokens", "7"]
    code, _, err = call(capsys, "statistics", llama, data, *args, "--out", out)
    assert code == 0, err
    found = open_statistics(out, "it")
    assert found.kinds() == ["activations", "fisher", "gram"] and found.header["labels"] == "sample"
    assert found.shapes["activations/model.layers.0.mlp.down_proj.weight"] == (7, 64)
    assert set(load_file(llama / "model.safetensors")) <= {
        k.removeprefix("fisher/") for k in found.shapes if k.startswith("fisher/")
    } | {"lm_head.weight"}
    assert call(capsys, "statistics", bert, data, "--kinds", "gram", "--out", out, "--overwrite")[0] == 0
    assert open_statistics(out, "it").has("gram", "encoder.layer.0.attention.self.query.weight")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--kinds", "fischer"], "unknown kind of statistics 'fischer'; did you mean 'fisher'"),
        (["--task", "embed"], "unknown task 'embed'"),
        (["--labels", "exat"], "unknown --labels 'exat'; did you mean 'exact'"),
        (["--rows", "0"], "--rows is 0; it must be at least 1"),
        (["--out", "s.bin"], "--out s.bin: wanted a name like s.safetensors"),
        (["--text-column", "words"], "unknown text column 'words'"),
    ],
)
def test_wrong_input_ends_with_one_line(capsys, tmp_path, monkeypatch, classifiers, change, message):
    monkeypatch.chdir(tmp_path)
    data = tiny.jsonl(tmp_path / "train.jsonl", tiny.rows(4))
    code, out, err = call(capsys, "statistics", classifiers[0], data, "--out", "s.safetensors", *change)
    assert code == 2 and message in err and "Traceback" not in err and not out
    assert [p.name for p in tmp_path.iterdir()] == ["train.jsonl"]


def test_what_has_no_head_or_other_classes(capsys, tmp_path, bert, classifiers):
    data, out = tiny.jsonl(tmp_path / "train.jsonl", tiny.rows(4)), tmp_path / "s.safetensors"
    code, _, err = call(capsys, "statistics", bert, data, "--out", out)
    assert code == 2 and "without a classifier, which fisher needs" in err
    odd = tiny.jsonl(tmp_path / "odd.jsonl", [{"text": "w1", "label": "tax"}])
    code, _, err = call(capsys, "statistics", classifiers[0], odd, "--labels", "data", "--out", out)
    assert code == 2 and "the label 'tax'" in err
    code, _, err = call(capsys, "statistics", tmp_path / "none", data, "--out", out)
    assert code == 2 and "cannot be read for the task 'classify'" in err
    assert not out.exists()


def test_a_plain_safetensors_file_is_no_statistics(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"x": json.dumps(1)})
    with pytest.raises(cw.CommonweightError, match="is not a statistics file"):
        cw.merge.fisher([{"a": torch.ones(2)}], statistics=[tmp_path / "a.safetensors"])
