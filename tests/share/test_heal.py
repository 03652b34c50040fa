"""Healing: what a shared model lost is learnt from the model it was made of."""

import pytest
import torch
import transformers as tf

from commonweight import CommonweightError, share
from commonweight.adapt.tasks import distil
from tests.adapt import tiny

ROWS = [{"text": r["text"]} for r in tiny.rows(60)]


def pair(folder, kind=tf.AutoModelForCausalLM, **options):
    teacher = kind.from_pretrained(folder)
    return share.share(teacher, "recursive", loops=2, **options), teacher


def call(folder, kind=tf.AutoModelForCausalLM, relax=2, **more):
    small, teacher = pair(folder, kind, relax=relax)
    how = {
        "rows": ROWS,
        "tokens": 1500,
        "dev_rows": 0.2,
        "batch_size": 4,
        "checkpoint_every": 2,
        "max_length": 32,
        **more,
    }
    return share.heal(small, teacher=teacher, **how)


def test_losses_by_hand():
    t, s = torch.randn(4, 9).log_softmax(-1), torch.randn(4, 9).log_softmax(-1)
    p, q = t.exp(), s.exp()
    m = (p + q) / 2
    want = {
        "forward-kl": (p * (t - s)).sum(-1), "reverse-kl": (q * (s - t)).sum(-1), "tvd": (p - q).abs().sum(-1) / 2,
        "jsd": ((p * (t - m.log())).sum(-1) + (q * (s - m.log())).sum(-1)) / 2,
    }  # fmt: skip
    for name, f in distil.LOSSES.items():
        assert torch.allclose(f(t, s), want[name], atol=1e-6), name
        assert torch.allclose(f(t, t), torch.zeros(4), atol=1e-6)


def test_a_model_comes_nearer_to_its_teacher(llama):
    small, teacher = pair(llama)
    ids = torch.randint(4, 44, (8, 12), generator=torch.Generator().manual_seed(0))

    def gap():
        with torch.no_grad():
            return float(distil.forward_kl(teacher(ids).logits, small(ids).logits).mean())

    before = gap()
    how = {"tokens": 4000, "lr": 3e-3, "batch_size": 4, "max_length": 32, "distillation": {"share": 1.0}}
    done = share.heal(small, teacher=teacher, rows=ROWS, **how)
    assert gap() < 0.7 * before
    assert done.tokens == pytest.approx(4000, rel=0.1) and done.metrics == {} and done.model is small
    assert len({id(b.mlp.up_proj.weight) for b in small.model.layers}) == 1


def test_a_killed_run_ends_with_the_same_bits(llama, tmp_path):
    def stop(p):
        if p.step == 5:
            raise KeyboardInterrupt

    whole = call(llama)
    with pytest.raises(KeyboardInterrupt):
        call(llama, checkpoint=tmp_path / "c", progress=stop)
    with pytest.raises(CommonweightError, match="an unfinished run lies there"):
        call(llama, checkpoint=tmp_path / "c")
    with pytest.raises(CommonweightError, match=r"other settings \(loss: then \"forward-kl\", now \"jsd\"\)"):
        call(llama, checkpoint=tmp_path / "c", resume=True, loss="jsd")
    again = call(llama, checkpoint=tmp_path / "c", resume=True)
    assert again.steps == whole.steps and again.metrics == whole.metrics
    assert all(torch.equal(a, b) for a, b in zip(whole.model.parameters(), again.model.parameters()))


def test_recomputed_activations_change_nothing(llama):
    a, b = call(llama), call(llama, gradient_checkpointing=True)
    assert all(torch.allclose(x, y, atol=1e-5) for x, y in zip(a.model.parameters(), b.model.parameters()))
    assert not b.model.model.gradient_checkpointing


def test_an_encoder_learns_its_teachers_states(bert):
    done = call(bert, tf.AutoModel, lr=1e-3)
    first = next(c["dev_loss"] for c in done.curve if "dev_loss" in c)
    assert done.metrics["loss"] <= first and done.metrics["n"] == 12


def test_an_adapter_is_trained_with_a_teacher(llama):
    """LLM-Neo: LoRA and distillation at once; the shared model itself stays."""
    small, teacher = pair(llama)
    before = {k: v.clone() for k, v in small.state_dict().items()}
    done = share.heal(small, teacher=teacher, rows=ROWS, tokens=1000, method="lora", options={"rank": 2}, max_length=32)
    assert done.host is not None and [*done.host] == ["healed"]
    assert all(torch.equal(v, before[k]) for k, v in small.state_dict().items())


def test_hidden_states_of_the_last_blocks(llama):
    """tail: the loss is higher by the error of the last blocks' states, and 0 where nothing is lost."""
    teacher = tf.AutoModelForCausalLM.from_pretrained(llama)
    from commonweight.adapt.base import tokenizer_of
    from commonweight.adapt.tasks import LM

    task = LM(tokenizer_of(teacher), 32)
    batch = task.collate(task.examples(ROWS[:4]))
    small, _ = pair(llama)
    plain, tailed = (
        distil.Distilled(task, teacher, distil.Distillation(share=1.0, tail=n)) for n in (0, 1)
    )  # fmt: skip
    assert tailed.loss(small, dict(batch)) > plain.loss(small, dict(batch)) > 0
    same = share.share(teacher, "recursive", loops=1)
    assert tailed.loss(same, dict(batch)).item() == pytest.approx(0, abs=1e-6)
    ce = distil.Distilled(task, teacher, distil.Distillation(share=0.0))
    assert ce.loss(small, dict(batch)).item() == pytest.approx(task.loss(small, dict(batch)).item(), abs=1e-6)


def test_refusals(llama, bert):
    small, _teacher = pair(llama)
    with pytest.raises(CommonweightError, match="the teacher is the model itself"):
        share.heal(small, teacher=small, rows=ROWS)
    with pytest.raises(CommonweightError, match=r"trained in bfloat16, in which small steps are lost"):
        share.heal(small.bfloat16(), rows=ROWS)
    with pytest.raises(CommonweightError, match="has no language head, so that text alone teaches nothing"):
        share.heal(pair(bert, tf.AutoModel)[0], rows=ROWS)
    with pytest.raises(CommonweightError, match="unknown loss 'kl'"):
        share.heal(pair(llama)[0], rows=ROWS, loss="kl")
    for tokens in (0, float("nan"), "2M", True):
        with pytest.raises(CommonweightError, match=r"tokens is .* wanted a whole number >= 1"):
            share.heal(pair(llama)[0], rows=ROWS, tokens=tokens)
    for rows in ([[5, 6, 7]], "rows.jsonl", ["a text"]):
        with pytest.raises(CommonweightError, match=r"row 0 is '.*'; wanted a row such as {'text': ...}"):
            share.heal(pair(llama)[0], rows=rows)
    with pytest.raises(CommonweightError, match="options are of an adapter's method"):
        share.heal(pair(llama)[0], rows=ROWS, options={"rank": 2})
    with pytest.raises(CommonweightError, match="the teacher is a BertModel; wanted the model"):
        share.heal(pair(llama)[0], rows=ROWS, teacher=pair(bert, tf.AutoModel)[1])
    encoder, teacher = pair(bert, tf.AutoModel)
    for more in ({"loss": "tvd"}, {"distillation": {"tail": 2}}):
        with pytest.raises(CommonweightError, match="is of language models; an encoder learns"):
            share.heal(encoder, teacher=teacher, rows=ROWS, **more)
    with pytest.raises(CommonweightError, match=r"tail: the teacher's blocks answer \(\d+, .* leave tail out"):
        share.heal(share.share(_teacher, "parscale", tokens=2), teacher=_teacher, rows=ROWS, distillation={"tail": 1})


def test_a_classifier_learns_its_teachers_states(bert):
    small, teacher = pair(bert, tf.AutoModelForSequenceClassification)
    done = share.heal(small, teacher=teacher, rows=ROWS, tokens=1500, lr=3e-3, batch_size=4, max_length=32)
    assert done.curve[-1]["loss"] < done.curve[0]["loss"]


def test_lora_with_a_teacher_is_llm_neo(llama):
    """(1 - a) CE + a KL(teacher || student) at each scored token; a = 0 is LoRA on the text, to the bit."""
    from commonweight.adapt.base import tokenizer_of
    from commonweight.adapt.tasks import LM

    small, teacher = pair(llama)
    task = LM(tokenizer_of(teacher), 32)
    batch = task.collate(task.examples(ROWS[:4]))
    got = distil.Distilled(task, teacher, distil.Distillation(share=0.3)).loss(small, dict(batch))
    labels = batch["labels"][:, 1:]
    s, t = (m(batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1] for m in (small, teacher))
    s, t, y = s[labels != -100], t[labels != -100], labels[labels != -100]
    ce = -s.log_softmax(-1).gather(1, y[:, None]).mean()
    kl = (t.softmax(-1) * (t.log_softmax(-1) - s.log_softmax(-1))).sum(-1).mean()
    assert got.item() == pytest.approx((0.7 * ce + 0.3 * kl).item(), rel=1e-5)
    how = {"rows": ROWS, "tokens": 600, "method": "lora", "options": {"rank": 2}, "max_length": 32, "batch_size": 4}
    made = [share.heal(pair(llama)[0], teacher=t, distillation={"share": 0.0}, **how) for t in (teacher, None)]
    pools = [dict(m.host["healed"].named_parameters()) for m in made]
    assert all(torch.allclose(p, pools[1][n], atol=1e-6) for n, p in pools[0].items()) and pools[0]


def test_foldgpt_is_healed_layer_by_layer(llama):
    teacher = tf.AutoModelForCausalLM.from_pretrained(llama)
    small = share.share(teacher, "foldgpt", rows=[[3, 4, 5, 6]], keep=2, steps=1)
    done = share.heal(small, teacher=teacher, rows=ROWS, tokens=300, max_length=32)
    assert done.settings["tail"] == 2
    assert share.heal(small, teacher=teacher, rows=ROWS, tokens=300, distillation={"tail": 1}).settings["tail"] == 1
    assert call(llama).settings["tail"] == 0
