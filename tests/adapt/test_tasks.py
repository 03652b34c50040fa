"""The three tasks, each formula written out."""

import math

import pytest
import torch
import transformers as tf
from torch import nn

from commonweight import CommonweightError
from commonweight.adapt.tasks import LM, Classify, Embed
from tests.adapt import tiny


def tok(folder):
    return tf.AutoTokenizer.from_pretrained(folder)


def test_classes_in_a_stable_order():
    rows = [{"text": "w", "label": x} for x in (10, 2, 1)]
    assert Classify.classes(rows) == ("1", "2", "10")
    assert Classify.classes([{"label": x} for x in ("b", "3", "a")]) == ("3", "a", "b")
    with pytest.raises(CommonweightError, match="is that the label"):
        Classify.classes([{"label": f"x{i}"} for i in range(1001)])


def test_batches_are_padded_to_their_longest(bert):
    task = Classify(tok(bert), 6, ["a", "b"])
    examples = task.examples([{"text": "w1", "label": "b"}, {"text": "w1 w2 w3 w4 w5 w6", "label": "a"}])
    batch = task.collate(examples)
    assert batch["input_ids"].shape == (2, 6) and batch["labels"].tolist() == [1, 0]
    assert batch["attention_mask"].sum(1).tolist() == [3, 6]


def test_infonce():
    vectors = torch.randn(6, 5)

    class Fake(nn.Module):
        def forward(self, **_):
            return type("Out", (), {"logits": vectors})

    ids = torch.arange(12).reshape(6, 2)
    a, p = [v / v.norm(dim=1, keepdim=True) for v in vectors.chunk(2)]
    s = a @ p.T / 0.05
    want = sum(torch.logsumexp(s[i], 0) - s[i, i] for i in range(3)) / 3
    task = Embed(None, 8)
    torch.testing.assert_close(task.loss(Fake(), {"input_ids": ids}), want)
    ids[5] = ids[3]  # rows 0 and 2 have the same positive: neither is the other's negative
    s[0, 2] = s[2, 0] = float("-inf")
    want = sum(torch.logsumexp(s[i], 0) - s[i, i] for i in range(3)) / 3
    torch.testing.assert_close(task.loss(Fake(), {"input_ids": ids}), want)


def test_pairs_by_any_of_their_names(bert):
    for names in (("anchor", "positive"), ("sentence1", "sentence2")):
        examples = Embed(tok(bert), 8).examples([dict(zip(names, ("w1 w2", "w3")))])
        assert [len(examples[0][k]) for k in ("anchor", "positive")] == [4, 3]
    assert Embed(tok(bert), 8, None, "x", "y").examples([{"x": "w1", "y": "w2"}])


def test_texts_are_cut_into_pieces(llama):
    task = LM(tok(llama), 4)
    examples = task.examples([{"text": "w0 w1 w2 w3 w4"}])
    assert [len(e["input_ids"]) for e in examples] == [4, 2]
    assert [e["bytes"] for e in examples] == [9, 0], "neither w0 nor w4 is scored, first in its piece"
    assert examples[1]["input_ids"][-1] == 3, "the end token closes the text"
    assert task.examples([{"text": "w0 w1"}])[0]["bytes"] == 3


def test_only_the_completion_is_scored(llama):
    task = LM(tok(llama), 8)
    (e,) = task.examples([{"prompt": "w0 w1", "completion": "w2 w3"}])
    assert e["input_ids"] == [4, 5, 6, 7, 3] and e["labels"] == [-100, -100, 6, 7, 3] and e["bytes"] == 5
    assert task.note == "loss on the completions only"
    (e,) = LM(tok(llama), 4).examples([{"prompt": "w0 w1 w9", "completion": "w2"}])
    assert e["input_ids"] == [5, 13, 6, 3], "a long prompt loses its beginning"
    (e,) = task.examples([{"prompt": "", "completion": "w2"}])
    assert e["input_ids"] == [2, 6, 3] and e["labels"] == [-100, 6, 3]
    with pytest.raises(CommonweightError, match="row 1: 'prompt' is 3"):
        task.examples([{"prompt": 3, "completion": "w2"}])
    with pytest.raises(CommonweightError, match="and there is no completion; name the other half"):
        task.examples([{"prompt": "w0"}])


def test_chats(llama):
    rows = [{"messages": [{"role": "user", "content": "w0 w1"}, {"role": "assistant", "content": "w2"}]}]
    tokenizer = tok(llama)
    with pytest.raises(CommonweightError, match="need a chat template"):
        LM(tokenizer, 8).examples(rows)
    tokenizer.chat_template = tiny.CHAT
    task = LM(tokenizer, 8)
    (e,) = task.examples(rows)
    assert e["input_ids"] == [4, 5, 3, 6, 3] and e["labels"] == [-100, -100, -100, 6, 3]
    assert task.note == "loss on the assistant's turns" and e["bytes"] == 2
    with pytest.raises(CommonweightError, match="no assistant speaks within 3 tokens"):
        LM(tokenizer, 3).examples(rows)
    with pytest.raises(CommonweightError, match="row 1: the chat template refuses"):
        task.examples([{"messages": 3}])
    tokenizer.chat_template = tiny.CHAT.replace("{% generation %}", "").replace("{% endgeneration %}", "")
    task = LM(tokenizer, 8)
    (again,) = task.examples(rows)
    assert again == e, "without marks in the template too, the assistant's turns alone are scored"


def test_the_columns_of_a_pair_are_named(llama):
    want = LM(tok(llama), 8).examples([{"prompt": "w0 w1", "completion": "w2"}])
    row = {"question": "w0 w1", "answer": "w2"}
    assert LM(tok(llama), 8).examples([row]) == want
    asked = LM(tok(llama), 8, None, None, None, "a", "b")
    assert asked.examples([{"a": "w0 w1", "b": "w2", "text": "w3"}]) == want
    alpaca = {"instruction": "w0", "input": "w1", "output": "w2"}
    assert LM(tok(llama), 8).examples([alpaca]) == want, "instruction and input are the prompt"
    (e,) = LM(tok(llama), 8).examples([{**alpaca, "input": ""}])
    assert e["input_ids"] == [4, 6, 3]
    with pytest.raises(CommonweightError, match="--label-column answer: a language model has no labels"):
        LM(tok(llama), 8, None, None, "answer").examples([row])
    with pytest.raises(CommonweightError, match="row 1: 'input' is 3; wanted a text"):
        LM(tok(llama), 8).examples([{**alpaca, "input": 3}])
    chatty = tok(llama)
    chatty.chat_template = tiny.CHAT
    task = LM(chatty, 8)
    assert task.examples([row]) == want and "without the tokenizer's chat template" in task.note


def marking(folder, begin=True, end=False):
    """The tokenizer with [CLS] before and, perhaps, [SEP] after each text."""
    from tokenizers import processors

    t = tok(folder)
    single = ("[CLS] " if begin else "") + "$A" + (" [SEP]" if end else "")
    t.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return t


@pytest.mark.parametrize("text", ["w0 w1", "[CLS] w0 w1", "w0 w1 [SEP]", "[CLS] w0 w1 [SEP]", "[CLS] w0 w1 [SEP] "])
@pytest.mark.parametrize("end", [False, True])
def test_special_tokens_stand_there_once(llama, text, end):
    (e,) = LM(marking(llama, end=end), 8).examples([{"text": text}])
    assert e["input_ids"] == [2, 4, 5, 3] and e["bytes"] == 5
    prompt, completion = text.split("w1")[0], "w1" + text.split("w1")[1]
    (e,) = LM(marking(llama, end=end), 8).examples([{"prompt": prompt, "completion": completion}])
    assert e["input_ids"] == [2, 4, 5, 3] and e["labels"] == [-100, -100, 5, 3]


def test_an_end_token_of_a_prompt_is_its_own(llama):
    """A chat as text: its last question ends with the end token, which the reply follows."""
    for end in (False, True):
        (e,) = LM(marking(llama, end=end), 8).examples([{"prompt": "w0 [SEP]", "completion": "w1"}])
        assert e["input_ids"] == [2, 4, 3, 5, 3]


def test_what_is_cut_is_counted(llama, bert):
    task = LM(tok(llama), 4)
    task.examples([{"text": "w0 w1 w2 w3 w4"}, {"text": "w0 w1"}])
    assert task.note == "loss on all of 'text'; 1 row longer than 4 tokens, cut into pieces"
    task.examples([{"prompt": "w0 w1 w2", "completion": "w3 w4"}, {"prompt": "w0", "completion": "w1 w2 w3 w4"}])
    assert task.note == (
        "loss on the completions only; 1 prompt cut at the beginning, over 4 tokens with the completion; 1 completion "
        "cut at the end, over 4 tokens"
    )
    task = Classify(tok(bert), 4, ["a", "b"])
    task.examples(
        [{"text": "w1 w2 w3", "label": "a"}, {"text": "w1 w2 w3 w4", "label": "b"}, {"text": "w1", "label": "a"}]
    )
    assert task.note == "2 rows cut off after 4 tokens"
    task.examples([{"text": "w1", "label": "a"}])
    assert task.note == ""


def test_labels_are_the_text_that_stands_there():
    def told(*labels):
        return Classify.classes([{"label": x} for x in labels])

    assert told(True, False) == ("false", "true"), "as JSON has them"
    assert told(1.5, 2.0) == ("1.5", "2.0")
    for wrong in (None, "", float("nan"), ["a"], b"a"):
        with pytest.raises(CommonweightError, match=r"row 2: 'label' is .*; wanted a label"):
            told("a", wrong)


def test_examples_are_shown_with_what_is_scored(llama, bert):
    lm = LM(tok(llama), 8)
    assert [lm.shown(e) for e in lm.examples([{"prompt": "w0", "completion": "w1"}])] == ["w0⟦w1 [SEP]⟧"]
    assert [lm.shown(e) for e in lm.examples([{"text": "w0 w1"}])] == ["w0⟦w1 [SEP]⟧"], "nothing predicts the first"
    task = Classify(tok(bert), 8, ["a", "b"])
    assert [task.shown(e) for e in task.examples([{"text": "w1", "label": "b"}])] == ["[CLS] w1 [SEP] -> ⟦b⟧"]
    task = Embed(tok(bert), 8)
    assert [task.shown(e) for e in task.examples([{"anchor": "w1", "positive": "w2"}])] == [
        "[CLS] w1 [SEP] -> ⟦[CLS] w2 [SEP]⟧"
    ]


def test_nats_and_bits(llama):
    """The loss is the model's own; bits per byte follow from it."""
    model = tf.AutoModelForCausalLM.from_pretrained(llama, dtype=torch.float32)
    task = LM(tok(llama), 16)
    examples = task.examples([{"text": "w0 w1 w2 w3"}])
    batch = task.collate(examples)
    with torch.no_grad():
        want = model(**batch).loss
        torch.testing.assert_close(task.loss(model, batch), want)
        metrics = task.measure(model, examples, 4)
    assert metrics["loss"] == pytest.approx(want.item(), rel=1e-5)
    assert metrics["bits_per_byte"] == pytest.approx(want.item() * 4 / math.log(2) / 9, rel=1e-5)
    assert 0 <= metrics["token_accuracy"] <= 1


def test_bytes_are_those_of_the_scored_tokens(llama):
    tokenizer = tok(llama)
    tokenizer.chat_template = tiny.CHAT
    (e,) = LM(tokenizer, 8).examples([{"messages": [{"role": "assistant", "content": "w0 w1"}]}])
    assert e["labels"] == e["input_ids"] == [4, 5, 3] and e["bytes"] == 3
    tokenizer.bos_token = None
    (e,) = LM(tokenizer, 8).examples([{"prompt": "", "completion": "w2 w3"}])
    assert e["input_ids"] == [6, 7, 3] and e["bytes"] == 3


class Table(nn.Module):
    """Logits by a row's first token."""

    def __init__(self, rows):
        super().__init__()
        self.rows = nn.Parameter(torch.tensor(rows))

    def forward(self, input_ids, **_):
        return type("Out", (), {"logits": self.rows[input_ids[:, 0]]})


def test_a_tie_is_no_hit(bert):
    def accuracy(rows, pairs):
        examples = [{"anchor": [a], "positive": [p]} for a, p in pairs]
        return Embed(tok(bert), 8).measure(Table(rows), examples, 2)["accuracy"]

    pairs = [(0, 1), (2, 3), (0, 4)]
    assert accuracy([[1.0, 0.0]] * 5, pairs) == 0.0, "an encoder that gives every text the same vector"
    apart = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [-1.0, 0.0]]
    assert accuracy(apart, pairs) == pytest.approx(2 / 3)
    assert accuracy(apart, [(0, 1), (2, 3), (0, 1)]) == 1.0, "the same text twice is no other text"
