"""Which columns a language model is trained on, and which rows are refused since they could be read in two ways."""

import pytest

from commonweight import CommonweightError
from commonweight.adapt.tasks.forms import Chat, Pair, Whole, form

CHAT = [{"role": "user", "content": "w0"}]

READ = [
    (("text",), Whole("text")),
    (("id", "text", "label"), Whole("text")),
    (("Content", "url"), Whole("Content")),
    (("prompt", "completion"), Pair("prompt", "completion")),
    (("prompt", "response"), Pair("prompt", "response")),
    (("Question", "Answer", "id"), Pair("Question", "Answer")),
    (("question", "answer"), Pair("question", "answer")),
    (("problem", "solution"), Pair("problem", "solution")),
    (("input", "output"), Pair("input", "output")),
    (("instruction", "output"), Pair("instruction", "output")),
    (("instruction", "input", "output"), Pair("instruction", "output", "input")),
    (("instruction", "input", "output", "text"), Pair("instruction", "output", "input")),
    (("instruction", "context", "response", "category"), Pair("instruction", "response", "context")),
    (("prompt", "completion", "text"), Pair("prompt", "completion")),
]


@pytest.mark.parametrize(("columns", "wanted"), READ)
def test_columns_that_people_use(columns, wanted):
    assert form([dict.fromkeys(columns, "w0")]) == wanted


REFUSED = [
    (
        ("question",),
        "'question' looks like one half of a pair, and there is no completion; name the other half",
    ),
    (("input",), "'input' looks like one half of a pair"),
    (("instruction", "input"), "there is no completion"),
    (("answer", "id"), "'answer' looks like one half of a pair, and there is no prompt"),
    (("question", "answer", "text"), r"several of them could be trained on \(question, answer, text\)"),
    (("problem", "solution", "answer"), "several of them could be trained on"),
    (("question", "input", "answer"), "several of them could be trained on"),
    (("question", "answer", "context"), "the column 'context' beside"),
    (("system_prompt", "question", "response"), "the column 'system_prompt' beside"),
    (("instruction", "input", "output", "system"), "the column 'system' beside"),
    (("instruction", "output", "history"), "the column 'history' beside"),
    (("instruction", "input", "context", "response"), "the column 'context' beside"),
    (("prompt", "completion", "system"), "the column 'system' beside"),
    (("quote", "author"), "no text column among author, quote; wanted text; or prompt and completion"),
    (("content", "review"), r"that stands out \(content, review\)"),
    (("prompt", "chosen", "rejected"), "answers that were rejected"),
]


@pytest.mark.parametrize(("columns", "message"), REFUSED)
def test_columns_of_which_none_stands_out(columns, message):
    with pytest.raises(CommonweightError, match=message):
        form([dict.fromkeys(columns, "w0")])


def test_a_context_that_is_empty_everywhere_is_no_obstacle():
    row = {"question": "w0", "answer": "w1", "context": ""}
    assert form([row]) == Pair("question", "answer")
    with pytest.raises(CommonweightError, match="the column 'context' beside"):
        form([row, {**row, "context": "w2"}])


def test_a_system_prompt_beside_a_chat_is_not_left_out():
    row = {"conversations": [{"from": "human", "value": "w0"}, {"from": "gpt", "value": "w1"}], "system_prompt": "w2"}
    with pytest.raises(CommonweightError, match="the column 'system_prompt' beside"):
        form([row])
    assert form([row], text="conversations") == Chat("conversations") == form([{**row, "system_prompt": ""}])


def test_columns_by_name():
    row = {"q": "w0", "answer": "w1", "text": "w2", "input": "w3", "instruction": "w4"}
    assert form([row], prompt="q", completion="text") == Pair("q", "text")
    assert form([row], prompt="q") == Pair("q", "answer")
    assert form([row], text="input") == Whole("input")
    assert form([row], prompt="instruction", completion="answer") == Pair("instruction", "answer", "input")
    assert form([row], completion="answer") == Pair("instruction", "answer", "input")
    with pytest.raises(CommonweightError, match="unknown prompt column 'p'"):
        form([row], prompt="p")
    with pytest.raises(CommonweightError, match="--text-column q beside a prompt"):
        form([row], text="q", prompt="q")
    with pytest.raises(CommonweightError, match=r"a prompt without a completion: .*name it with --completion-column"):
        form([{"q": "w0", "r": "w1"}], prompt="q")
    with pytest.raises(CommonweightError, match=r"a completion without a prompt: .*name it with --prompt-column"):
        form([{"q": "w0", "r": "w1"}], completion="r")


def test_chats():
    assert form([{"messages": CHAT, "prompt": "w0"}]) == Chat("messages")
    assert form([{"id": 1, "conversations": [{"from": "human", "value": "w0"}]}]) == Chat("conversations")
    assert form([{"conversations": '[{"from": "human", "value": "w0"}]'}]) == Chat("conversations")
    assert form([{"conversation": "w0", "text": "w1"}]) == Whole("text")
    assert form([{"turns": CHAT}], text="turns") == Chat("turns")
    assert form([{"prompt": CHAT, "completion": CHAT}]) == Pair("prompt", "completion")


@pytest.mark.parametrize("bad", [False, "false", "False"])
@pytest.mark.parametrize("row", [{"prompt": "p", "completion": "c"}, {"messages": [{"role": "user", "content": "q"}]}])
def test_rows_that_are_judged_bad_are_not_learnt(row, bad):
    good = True if bad is False else "true"
    rows = [{**row, "label": good}, {**row, "label": bad}]
    with pytest.raises(CommonweightError, match=r"1 of 2 rows have 'label' false.*Keep the rows that are true"):
        form(rows)
    assert form([{**row, "label": good}]) == form([row])
    assert form([{**row, "label": "positive"}, {**row, "label": "false"}]) == form([row])  # a class among others


def test_a_class_beside_a_whole_text_is_no_judgement():
    rows = [{"text": "a", "label": True}, {"text": "b", "label": False}]
    assert form(rows) == Whole("text") == form(rows, text="text")


def test_preference_rows_are_learnt_where_the_better_answer_is_named():
    rows = [{"prompt": "p", "chosen": "good", "rejected": "bad"}]
    with pytest.raises(
        CommonweightError, match=r"'rejected' holds answers that were rejected.*--completion-column chosen"
    ):
        form(rows)
    with pytest.raises(CommonweightError, match="rejected"):
        form([{"text": "t", "Rejected": "bad"}])
    assert form(rows, completion="chosen") == Pair("prompt", "chosen")
    assert form(rows, text="chosen") == Whole("chosen")
