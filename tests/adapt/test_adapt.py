"""adapt and evaluate on tiny models: they learn, they repeat themselves, they refuse what is wrong."""

import copy

import pytest
import torch
import transformers as tf

import commonweight as cw
from commonweight.adapt import Recipe, adapt, evaluate, open_host
from commonweight.adapt.base import limit, native_bf16, prepare, tokenizer_of
from commonweight.adapt.data import split
from commonweight.adapt.files import thin
from tests.adapt import tiny

FAST = {"lr": 1e-2, "epochs": 6, "batch_size": 8}


@pytest.fixture
def host(bert):
    return open_host(bert, "classify", dtype="float32")


def bits(tenant):
    return {n: p.detach().clone() for n, p in tenant.named_parameters()}


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("method", ["lora", "mos", "probe"])
def test_it_learns(host, method):
    seen = []
    result = adapt(host, "t", tiny.rows(90), method=method, progress=seen.append, **FAST)
    assert result.tenant.labels == ("food", "law", "sport") and result.metrics == {}
    assert result.steps == len(result.curve) == len(seen) == 72 and seen[-1].steps == 72
    metrics = evaluate(host, "t", tiny.rows(60, seed=1))
    assert metrics["accuracy"] > 0.6 and metrics["n"] == 60 and set(metrics) == {"accuracy", "macro_f1", "loss", "n"}
    assert not host.model.training and all(not p.requires_grad for p in host.model.parameters())


def test_tenants_one_after_another_have_the_bits_they_have_alone(host, bert):
    a = bits(adapt(host, "a", tiny.rows(30), method="lora", options={"rank": 2, "dropout": 0.1}, epochs=2).tenant)
    b = bits(adapt(host, "b", tiny.rows(30), method="lora", options={"rank": 2, "dropout": 0.1}, epochs=2).tenant)
    assert equal(a, b) and equal(a, bits(host["a"]))
    other = adapt(host, "c", tiny.rows(30), method="lora", options={"rank": 2, "dropout": 0.1}, epochs=2, seed=1)
    assert not equal(a, bits(other.tenant))


def test_the_best_dev_state_is_kept_and_training_stops_early(host):
    dev = tiny.rows(20, seed=1)
    result = adapt(host, "t", tiny.rows(30), method="probe", dev_rows=dev, epochs=50, lr=0.3, patience=2, batch_size=8)
    scored = [c for c in result.curve if "dev_accuracy" in c]
    best = max(c["dev_accuracy"] for c in scored)
    assert result.steps == 4 * len(scored) < 200
    assert [c["dev_accuracy"] for c in scored].index(best) == len(scored) - 3
    assert result.metrics["accuracy"] == best == evaluate(host, "t", dev)["accuracy"]


def test_dropout_of_the_base_is_off_unless_asked(host):
    for m in host.model.modules():
        if isinstance(m, torch.nn.Dropout):
            m.p = 0.5
    plain = [bits(adapt(host, f"p{s}", tiny.rows(16), method="probe", epochs=1).tenant) for s in range(2)]
    dropped = bits(adapt(host, "d", tiny.rows(16), method="probe", epochs=1, base_dropout=True).tenant)
    assert equal(*plain) and not equal(plain[0], dropped)


def test_language_modelling(llama):
    host = open_host(llama, "lm", dtype="float32")
    rows = [{"text": "w1 w2 w3 w4 w5 w6"}] * 16
    before = evaluate(host, None, rows, "lm")
    result = adapt(host, "t", rows, task="lm", method="lora", **FAST)
    after = evaluate(host, "t", rows, "lm")
    assert result.note == "loss on all of 'text'"
    assert after["loss"] < 0.9 * before["loss"] and after["tokens"] == 16 * 6
    assert after["bits_per_byte"] == pytest.approx(after["loss"] * after["tokens"] / 0.693147 / (16 * 15), rel=1e-4)


def test_embedding(host):
    rows = tiny.pairs(40)
    before = evaluate(host, None, rows, "embed")
    result = adapt(host, "t", rows, task="embed", method="lora", **FAST)
    assert result.tenant.labels is None
    after = evaluate(host, "t", rows, "embed")
    assert after["loss"] < before["loss"] and after["accuracy"] >= before["accuracy"] and after["n"] == 40


def test_any_trainer_takes_a_tenants_module(host, tmp_path):
    """What Trainer asks of an nn.Module: a signature, labels, a state_dict, training mode."""
    tokenizer = tokenizer_of(host.model)
    host.add("t", "lora", labels=3)
    module = host.module("t")
    data = [{**tokenizer(r["text"]), "labels": i % 3, "left over": 1} for i, r in enumerate(tiny.rows(12))]
    before = bits(host["t"])
    args = tf.TrainingArguments(
        str(tmp_path), max_steps=3, report_to=[], disable_tqdm=True, save_strategy="no", logging_strategy="no",
        use_cpu=True, dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = tf.Trainer(module, args, tf.DataCollatorWithPadding(tokenizer), train_dataset=data)
    trainer.remove_callback(tf.PrinterCallback)
    trainer.train()
    assert not equal(before, bits(host["t"]))
    assert all(k.startswith("pools.") for k in module.state_dict())
    again = copy.deepcopy(module)
    batch = tokenizer(["w1 w2"], return_tensors="pt")
    torch.testing.assert_close(again.eval()(**batch).logits, module.eval()(**batch).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train_rows": []}, "no rows to train on"),
        ({"method": "moss"}, "unknown method 'moss'; did you mean 'mos'"),
        ({"options": {"rnk": 3}}, "unknown option of LoRA 'rnk'; did you mean 'rank'"),
        ({"options": {"rank": 0}}, "rank is 0; it must be >= 1"),
        ({"task": "clasify"}, "unknown task 'clasify'; did you mean 'classify'"),
        ({"epoch": 2}, "unknown option of Recipe 'epoch'; did you mean 'epochs'"),
        ({"epochs": 0}, "epochs is 0"),
        ({"lr": -1.0}, "lr is -1.0"),
        ({"max_length": 65}, "max_length=65 is more than the model's 64 positions"),
        ({"name": "../t"}, "cannot be a tenant's name"),
        ({"labels": ["law", "sport"]}, "the label 'food' does not occur in the training rows; known: law, sport"),
        ({"dev_rows": [{"text": "w1", "label": "art"}]}, "dev rows: row 1: the label 'art' does not occur"),
        ({"dev_rows": 1.5}, "dev=1.5: wanted a fraction"),
        ({"dev_rows": 0.99}, "leaves nothing to train on"),
        ({"text_column": "txt"}, "unknown text column 'txt'; did you mean 'text'"),
        ({"train_rows": [{"text": "w1", "label": "a"}]}, "only the label 'a' occurs"),
        (
            {"train_rows": [{"text": "w1", "label": None}, {"text": "w1", "label": "b"}]},
            "training rows: row 1: 'label' is None",
        ),
        ({"train_rows": [{"text": "w1"}]}, "no label column among text"),
        (
            {"train_rows": [{"text": 3, "label": "a"}, {"text": "w1", "label": "b"}]},
            "training rows: row 1: 'text' is 3",
        ),
        ({"task": "embed"}, "no pair of columns among text, label"),
        (
            {"task": "embed", "method": "probe", "train_rows": [{"anchor": "w1", "positive": "w2"}]},
            "no trainable number",
        ),
    ],
)
def test_what_is_refused_leaves_the_host_as_it_was(host, change, message):
    call = {"name": "t", "train_rows": tiny.rows(20), "method": "lora", "epochs": 1, **change}
    with pytest.raises(cw.CommonweightError, match=message):
        adapt(host, call.pop("name"), call.pop("train_rows"), **call)
    assert len(host) == 0


def test_a_run_that_breaks_off_takes_its_tenant_with_it(host):
    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        adapt(host, "t", tiny.rows(20), method="lora", progress=stop)
    assert "t" not in host


def test_the_plain_base_has_no_labels(host):
    with pytest.raises(cw.CommonweightError, match="the plain base has no labels"):
        evaluate(host, None, tiny.rows(3))


def test_a_loader_that_is_not_there(bert, monkeypatch):
    """As that of HQQ in transformers 5.23, which refuses every model with this error."""

    def refuse(*_, **__):
        raise NotImplementedError("QuantizationMethod.HQQ is not available yet")

    monkeypatch.setattr(tf.AutoModel, "from_pretrained", refuse)
    with pytest.raises(cw.CommonweightError, match=r"cannot be read for the task 'classify': QuantizationMethod\.HQQ"):
        open_host(bert)


def test_a_model_that_cannot_be_opened(tmp_path, bert):
    with pytest.raises(cw.CommonweightError, match=r"no config\.json there"):
        open_host(tmp_path)
    with pytest.raises(cw.CommonweightError, match="cannot be read for the task 'classify'"):
        open_host(tmp_path / "gone" / "x" / "y")
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(cw.CommonweightError, match="cannot be read for the task"):
        open_host(tmp_path)
    for file in bert.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(cw.CommonweightError, match="cannot be read for the task"):
        open_host(tmp_path)
    with pytest.raises(cw.CommonweightError, match="unknown dtype 'float31'; did you mean 'float32'"):
        open_host(bert, dtype="float31")


def test_an_encoder_is_no_language_model(bert, tmp_path):
    from transformers import BertForMaskedLM

    with pytest.raises(cw.CommonweightError, match=r"has no weights for cls\..*: it is not a language model"):
        open_host(bert, "lm")
    BertForMaskedLM.from_pretrained(bert).save_pretrained(tmp_path)
    with pytest.raises(cw.CommonweightError, match=r"sees the tokens after the one that it predicts \(BertLMHeadModel"):
        open_host(tmp_path, "lm", dtype="float32")


def test_dtype_auto_follows_the_processor(bert):
    dtype = next(open_host(bert).model.parameters()).dtype
    assert dtype == (torch.bfloat16 if native_bf16("cuda" if torch.cuda.is_available() else "cpu") else torch.float32)


def test_a_tokenizer_without_a_pad_token(llama):
    tokenizer = tf.AutoTokenizer.from_pretrained(llama)
    tokenizer.pad_token = None
    assert prepare(tokenizer).pad_token_id == tokenizer.eos_token_id
    tokenizer.pad_token = tokenizer.eos_token = None
    with pytest.raises(cw.CommonweightError, match="neither a pad nor an end token"):
        prepare(tokenizer)
    with pytest.raises(cw.CommonweightError, match="does not name its source"):
        tokenizer_of(torch.nn.Linear(2, 2))


def test_room_for_tokens(host):
    tokenizer = tokenizer_of(host.model)
    assert limit(host.model, tokenizer, None, 512) == 64 and limit(host.model, tokenizer, 10, 512) == 10


def test_a_fraction_of_the_rows():
    rows = tiny.rows(20)
    train, dev = split(rows, 0.25, 0)
    assert len(dev) == 5 and len(train) == 15 and all(r in rows for r in dev)
    assert split(rows, 0.25, 0) == (train, dev) != split(rows, 0.25, 1)


def test_steps_of_the_recipe():
    assert Recipe().steps(1000) == 96 and Recipe().steps(10_000) == 939
    assert Recipe().steps(200) == 98 and Recipe().steps(10) == 30
    assert Recipe(epochs=0.5).steps(1000) == 16


def test_a_long_curve_is_thinned():
    curve = [{"step": i, "loss": float(i)} for i in range(1, 1001)]
    curve[500]["dev_loss"] = 1.0
    short = thin(curve)
    assert len(short) <= 202 and short[-1]["step"] == 1000 and sum("dev_loss" in c for c in short) == 1
    assert short[0] == {"step": 5, "loss": 3.0} and thin([]) == []


@pytest.mark.parametrize("wrong", [{"text": 3, "label": "law"}, {"text": "w1", "label": None}])
def test_a_wrong_row_is_counted_in_the_whole(host, wrong):
    rows = [*tiny.rows(30), wrong]
    with pytest.raises(cw.CommonweightError, match=r"rows: row 31: '(text|label)' is"):
        adapt(host, "t", rows, method="lora", dev_rows=0.4)


def test_a_tenant_over_tenants_is_trained(bert):
    """Their numbers stay, its own learn, each time the same bits."""
    host = open_host(bert, dtype="float32")
    for n in "ab":
        adapt(host, n, tiny.rows(40, ord(n)), method="lora", options={"rank": 2}, epochs=2, batch_size=8, lr=1e-2)
    held = {n: {k: p.clone() for k, p in host[n].pools.items()} for n in "ab"}
    how = {"method": "psec", "options": {"hidden": 4}, "over": ["a", "b"], "epochs": 3, "batch_size": 8, "lr": 1e-2}
    seen = []
    result = adapt(host, "t", tiny.rows(40, 3), **how, progress=seen.append)
    assert seen[-1].loss < seen[0].loss
    assert all(torch.equal(p, held[n][k]) for n in "ab" for k, p in host[n].pools.items())
    mine = {k: p.clone() for k, p in result.tenant.named_parameters()}
    host.remove("t")
    again = adapt(host, "t", tiny.rows(40, 3), **how).tenant
    assert all(torch.equal(p, mine[k]) for k, p in again.named_parameters())
