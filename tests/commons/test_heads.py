"""PEFT adapters with classification heads, as tenants of one common: same logits in, same logits out."""

import json
import re
import warnings

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.adapt import open_host
from commonweight.commons import Commons, import_peft
from commonweight.commons.adapters import adapters, classes_of, of_task
from commonweight.formats.peft import folder as files
from tests.cli.test_cli import call
from tests.models import VOCAB, make

IDS = torch.tensor([[5, 7, 6, 8], [9, 5, 11, 3]])
CLASSES = {"a": 2, "b": 3}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of small bases: one with a pooler, one that is read at the last token."""
    out = {}
    for kind in ("bert", "llama"):
        model = make(kind)[0]
        model = model if kind == "bert" else model.model
        out[kind] = tmp_path_factory.mktemp("base") / kind
        model.save_pretrained(out[kind])
    return out


def write(base, at, kind, classes, seed, peft, modules=None):
    """An adapter by PEFT with a head; its logits."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = tf.AutoModelForSequenceClassification.from_pretrained(base, num_labels=classes)
        targets = ["query", "value"] if kind == "bert" else ["q_proj", "up_proj"]
        wrapped = peft.get_peft_model(
            model, peft.LoraConfig(task_type="SEQ_CLS", r=3, target_modules=targets, modules_to_save=modules)
        )
    with torch.no_grad():
        for p in wrapped.parameters():
            if p.requires_grad:
                p.add_(0.3 * torch.randn_like(p))
        out = torch.cat([wrapped.eval()(input_ids=row[None]).logits for row in IDS])
        wrapped.save_pretrained(at)
    return out


@pytest.mark.parametrize("kind", ["bert", "llama"])
def test_logits_are_those_of_peft(bases, tmp_path, kind):
    peft = pytest.importorskip("peft")
    want = {n: write(bases[kind], tmp_path / "in" / n, kind, k, i, peft) for i, (n, k) in enumerate(CLASSES.items())}
    found = adapters([tmp_path / "in"])
    assert of_task(found) == "classify" and classes_of(found) == CLASSES
    host = open_host(bases[kind], dtype="float32", pool="transformers")
    store = Commons(tmp_path / "store")
    with pytest.raises(cw.CommonweightError, match="give labels= to take a classification head along"):
        import_peft(store, host, [tmp_path / "in"])
    assert not len(host) and not len(store)
    report = import_peft(store, host, [tmp_path / "in"], keep=1.0, labels={"a": ["no", "yes"], "b": 3})
    assert max(t.error for t in report.tenants) < 1e-4
    for name, logits in want.items():
        tenant = host.load_from(store, name)
        assert tenant.labels == (("no", "yes") if name == "a" else ("0", "1", "2"))
        with host.route(name), torch.no_grad():
            got = torch.cat([host.model(row[None]).logits for row in IDS])
        torch.testing.assert_close(got, logits, rtol=1e-3, atol=1e-4)
    left = import_peft(Commons(tmp_path / "none"), cw.Host(make("llama")[0]) if kind == "llama" else open_host(
        bases[kind], dtype="float32"), [tmp_path / "in"], keep=1.0, labels=dict.fromkeys(CLASSES, ()))  # fmt: skip
    assert [t.error < 1e-4 for t in left.tenants] == [True, True]
    if kind == "bert":
        with pytest.raises(cw.CommonweightError, match="its head was trained on features that are pooled in another"):
            open_host(bases[kind], dtype="float32").load_from(store, "a")


def test_a_late_tenant_reads_as_the_heads_of_its_common(tmp_path, capsys):
    from tests.adapt import tiny

    peft = pytest.importorskip("peft")
    base = tiny.base(tmp_path / "base", "bert")
    write(base, tmp_path / "in" / "a", "bert", 2, 0, peft)
    data = tiny.jsonl(tmp_path / "rows.jsonl", tiny.rows(16, 0, ("no", "yes")))
    args = "store", "import-peft", tmp_path / "store", tmp_path / "in", "--model", base, "--eval", data
    code, _, err = call(capsys, *args)
    assert code == 2 and "--eval, a: row 1: the label" in err and "--labels names the classes of a head" in err
    code, _, err = call(capsys, *args, "--labels", "no,yes")
    assert code == 0, err
    late = "--store", tmp_path / "store", "--common", "adapters", "--tenant", "late", "--epochs", "1"
    code, _, err = call(capsys, "adapt", base, data, *late, "--dtype", "float32")
    assert code == 0, err
    host = open_host(base, dtype="float32", pool="pooler")
    assert host.load_from(Commons(tmp_path / "store"), "late").labels == ("no", "yes")
    with pytest.raises(cw.CommonweightError, match="unknown pool 'poler'; did you mean 'pooler'"):
        open_host(base, pool="poler")


def by_hand(at, base_host, name, classes, **config):
    """The same format without PEFT: our own export, and a head beside it."""
    from safetensors.torch import load_file, save_file

    base_host.export_peft(name, at)
    (at / files.REPORT).unlink()
    about = json.loads((at / files.CONFIG).read_text())
    about |= {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"], **config}
    (at / files.CONFIG).write_text(json.dumps(about))
    g = torch.Generator().manual_seed(classes)
    tensors = load_file(at / files.TENSORS)
    tensors["base_model.model.score.weight"] = torch.randn(classes, 32, generator=g)
    save_file(tensors, at / files.TENSORS)
    return tensors


@pytest.fixture
def folders(bases, tmp_path):
    from tests.laws.subjects import stir

    (tmp_path / "in").mkdir()
    host = open_host(bases["llama"], dtype="float32")
    for i, (name, classes) in enumerate(CLASSES.items()):
        stir(host.add(name, "lora", rank=2, sites="*.q_proj"), i)
        by_hand(tmp_path / "in" / name, host, name, classes)
    return tmp_path / "in"


def test_on_the_command_line(bases, folders, tmp_path, capsys):
    args = "store", "import-peft", tmp_path / "store", folders, "--model", bases["llama"], "--keep", "1"
    code, out, err = call(capsys, *args, "--labels", "b=x,y,z")
    assert code == 0, err
    assert out.splitlines()[1].startswith("a ") and "total" in out
    host = open_host(bases["llama"], dtype="float32")
    a, b = (host.load_from(Commons(tmp_path / "store"), n) for n in CLASSES)
    assert a.labels == ("0", "1") and b.labels == ("x", "y", "z") and a.method.name == "share"
    code, _, err = call(capsys, *args[:2], tmp_path / "plain", *args[3:], "--no-heads")
    assert code == 0, err
    assert Commons(tmp_path / "plain").manifest("a").tenant.get("labels") is None


def test_labels_of_the_base(bases, folders, tmp_path, capsys):
    base = tmp_path / "named"
    base.mkdir()
    for f in bases["llama"].iterdir():
        (base / f.name).write_bytes(f.read_bytes())
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "id2label": {"0": "neg", "1": "mid", "2": "pos"}}))
    code, _, err = call(capsys, "store", "import-peft", tmp_path / "store", folders, "--model", base)
    assert code == 0, err
    store = Commons(tmp_path / "store")
    assert store.manifest("b").tenant["labels"] == ["neg", "mid", "pos"]
    assert store.manifest("a").tenant["labels"] == ["0", "1"], "the base's names are of another number"


def test_mistakes(bases, folders, tmp_path, capsys):
    def said(*more, at=folders):
        code, _, err = call(capsys, "store", "import-peft", tmp_path / "store", at, "--model", bases["llama"], *more)
        assert code == 2 and "Traceback" not in err and not (tmp_path / "store").exists(), err
        return err

    assert "its head score has 2 classes of 32 features; wanted 3" in said("--labels", "a=x,y,z")
    assert "unknown adapter 'c'" in said("--labels", "c=x,y")
    assert "for which the task lm has no place; --task classify, or --no-heads" in said("--task", "lm")
    assert "no rows for a" in said("--eval", tmp_path)
    about = json.loads((folders / "a" / files.CONFIG).read_text())
    for change, message in (
        ({"task_type": "CAUSAL_LM"}, "is for classify, .*a for lm; import them apart"),
        ({"task_type": "TOKEN_CLS"}, "task_type 'TOKEN_CLS': wanted one of CAUSAL_LM, SEQ_CLS"),
    ):
        (folders / "a" / files.CONFIG).write_text(json.dumps({**about, **change}))
        assert re.search(message, said())
    (folders / "a" / files.CONFIG).write_text(json.dumps(about))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"task_type": "TOKEN_CLS"}, r"its head scores each token \(task_type TOKEN_CLS\)"),
        ({"task_type": "QUESTION_ANS"}, "its head scores the places of an answer"),
        (
            {"task_type": None, "auto_mapping": {"base_model_class": "LlamaForTokenClassification"}},
            r"its head scores each token \(a LlamaForTokenClassification\)",
        ),
        (
            {"task_type": None, "auto_mapping": {"base_model_class": "BertForMultipleChoice"}},
            "its head scores each of several choices",
        ),
    ],
)
def test_a_head_that_reads_no_whole_text(bases, tmp_path, config, message):
    host = open_host(bases["llama"], dtype="float32")
    host.add("a", "lora", rank=2, sites="*.q_proj")
    by_hand(tmp_path / "a", host, "a", 3, **config)
    with pytest.raises(cw.CommonweightError, match=message):
        host.import_peft("b", tmp_path / "a", labels=["O", "B", "I"])
    assert host.import_peft("b", tmp_path / "a", labels=()).labels is None


def test_a_head_of_several_layers(tmp_path, capsys):
    peft = pytest.importorskip("peft")
    config = tf.RobertaConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB,
        max_position_embeddings=32,
    )  # fmt: skip
    tf.RobertaModel(config).save_pretrained(tmp_path / "base")
    write(tmp_path / "base", tmp_path / "in" / "a", "bert", 2, 0, peft)
    args = "store", "import-peft", tmp_path / "store", tmp_path / "in", "--model", tmp_path / "base"
    code, _, err = call(capsys, *args)
    assert code == 2 and "a head of several layers; only one" in err
    code, _, err = call(capsys, *args, "--no-heads")
    assert code == 0, err
    with pytest.raises(cw.CommonweightError, match="its head is more than one linear layer over pooled features"):
        open_host(tmp_path / "base", pool="transformers")
