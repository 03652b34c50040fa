"""The folder of a shared model as MODEL of the other verbs."""

import pytest
import torch
import transformers as tf

from commonweight import CommonweightError, adapt, share
from commonweight.cli import app
from commonweight.serve.prompts import loaded, tokenizer_of
from tests.adapt import tiny
from tests.share.deep import far


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Form -> folder, and what the model answers."""
    root = tmp_path_factory.mktemp("shared")
    model = tf.AutoModelForCausalLM.from_pretrained(tiny.base(root / "base", "llama"))
    small = share.share(model, "recursive", loops=2, relax=2, share_norms=False)
    ids = torch.randint(4, 44, (2, 9), generator=torch.Generator().manual_seed(0))
    for form in ("remote-code", "peft"):
        share.save(small, root / form, form)
    with torch.no_grad():
        return root, ids, small(ids).logits


@pytest.mark.parametrize("form", ["remote-code", "peft"])
def test_adapt_and_serve_open_it(folders, form, tmp_path):
    """With the depths as sites, each tensor once, and no code of the folder run."""
    root, ids, want = folders
    host = adapt.open_host(str(root / form), "lm", dtype="float32")
    with torch.no_grad():
        assert far(host.model(ids).logits, want) == 0
        assert far(loaded(str(root / form), "float32")(ids).logits, want) == 0
    assert {s.name for s in host.sites if s.kind == "linear"} == {
        f"model.layers.{d}.{n}" for d in (0, 1)
        for n in ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
                  "mlp.up_proj", "mlp.down_proj")
    }  # fmt: skip
    assert len({id(b.mlp.up_proj.weight) for b in host.model.model.layers}) == 1
    rows = tiny.jsonl(tmp_path / "rows.jsonl", [{"text": r["text"]} for r in tiny.rows(20)])
    done = adapt.run(
        str(root / form), str(rows), tmp_path / "t.safetensors", task="lm", method="lora", epochs=1, say=lambda _: None
    )
    assert done.result.steps > 0


def test_its_tokenizer_asks_nothing(folders, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked whether to run code"))
    assert tokenizer_of(None, str(folders[0] / "remote-code")).pad_token == "[PAD]"


def test_merge_makes_a_shared_model_of_two(folders, tmp_path):
    from typer.testing import CliRunner

    root, _, _ = folders
    other = share.load(root / "remote-code")
    with torch.no_grad():
        for p in other.parameters():
            p.add_(0.1)
    share.save(other, tmp_path / "other")
    call = ["merge", "--method", "linear", str(root / "remote-code"), str(tmp_path / "other")]
    done = CliRunner().invoke(app, [*call, "--out", str(tmp_path / "m")])
    assert done.exit_code == 0, done.exception
    models = [share.load(f) for f in (root / "remote-code", tmp_path / "other", tmp_path / "m")]
    for a, b, m in zip(*(x.parameters() for x in models)):
        assert torch.allclose((a + b) / 2, m, atol=1e-6)


@pytest.mark.parametrize("form", ["remote-code", "peft"])
def test_plan_statistics_and_compare_read_it_and_run_nothing_of_it(folders, form, tmp_path, monkeypatch):
    """As they would the unrolled model; the folder's code is neither run nor asked for."""
    import json

    from typer.testing import CliRunner

    from commonweight.compare.run import opened

    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("it asked whether to run code"))
    folder = str(folders[0] / form)
    share.save(share.load(folders[0] / form), tmp_path / "plain", "unrolled")

    def said(*words):
        done = CliRunner().invoke(app, list(words))
        assert done.exit_code == 0, (done.output, done.exception)
        return done.output

    rows = [json.loads(said("plan", f, "-m", "lora", "--json"))["rows"] for f in (folder, str(tmp_path / "plain"))]
    assert rows[0] == rows[1]
    data = tiny.jsonl(tmp_path / "rows.jsonl", [{"text": r["text"]} for r in tiny.rows(8)])
    said("statistics", folder, str(data), "--task", "lm", "--kinds", "gram", "--out", str(tmp_path / "s.safetensors"))
    host = opened(folder, "lm", "float32")
    assert len({id(b.mlp.up_proj.weight) for b in host.model.model.layers}) == 1
    done = CliRunner().invoke(app, ["share", folder, "--plan"])
    assert done.exit_code != 0 and "is a shared model already; share the one that it was made of" in str(done.exception)


@pytest.mark.parametrize("form", ["remote-code", "peft"])
def test_generate_answers_rows_with_it(folders, form, capsys, monkeypatch):
    """The engine behind `serve`, `chat` and `generate`."""
    import io
    import json

    from tests.cli.test_cli import call

    rows = json.dumps({"prompt": "w1 w2 w3", "max_tokens": 4, "temperature": 0, "logprobs": 1}) + "\n"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(rows.encode())))
    code, out, err = call(capsys, "generate", folders[0] / form, "--dtype", "float32")
    assert code == 0, err
    model = share.load(folders[0] / form).eval()
    read = tokenizer_of(None, str(folders[0] / "remote-code"))
    ids = read("w1 w2 w3", return_tensors="pt").input_ids
    with torch.no_grad():
        first = model(ids).logits[0, -1].log_softmax(-1)
    told = json.loads(out)
    assert told["new_tokens"] >= 1
    assert told["logprobs"][0]["logprob"] == pytest.approx(float(first.max()), abs=1e-4)


def test_compare_trains_methods_on_it(folders, capsys, tmp_path):
    from tests.cli.test_cli import call

    for part, n in {"train": 12, "dev": 8, "test": 8}.items():
        tiny.jsonl(tmp_path / f"one.{part}.jsonl", [{"text": r["text"]} for r in tiny.rows(n)])
    code, out, err = call(
        capsys, "compare", folders[0] / "remote-code", tmp_path / "one.train.jsonl", "--task", "lm",
        "--methods", "lora", "--seeds", "1", "--epochs", "1", "--dtype", "float32", "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert code == 0, err
    assert "1 method, 1 config, 1 task, 1 seed" in out


def test_a_classifier_is_served_from_a_shared_folder(tmp_path):
    from commonweight.serve import outputs
    from tests.share.deep import IDS, SIZE

    torch.manual_seed(0)
    config = tf.BertConfig(num_hidden_layers=2, max_position_embeddings=32, num_labels=3, **SIZE)
    small = share.share(tf.BertForSequenceClassification(config).eval(), "recursive", loops=2)
    share.save(small, tmp_path / "s")
    with torch.no_grad():
        host = outputs.opened(str(tmp_path / "s"), "auto")
        assert far(host.model(IDS).logits, small(IDS).logits) == 0


def test_a_model_with_forms_is_not_shared_again(folders):
    with pytest.raises(CommonweightError, match=r"is a shared model already \(recursive\), whose layers read pools"):
        share.share(share.load(folders[0] / "remote-code"), "recursive")
