"""Chats as people write them, and which tokens of them are scored, for templates of several kinds."""

import json

import pytest
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from commonweight import CommonweightError
from commonweight.adapt.tasks import LM

NAMED = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>\n{% endfor %}"
OPENED = NAMED + "{% if add_generation_prompt %}<assistant>{% endif %}"
# drops the thoughts of all turns but the last, and opens each that has none with an empty one
THOUGHTS = (
    "{% for m in messages %}<{{ m.role }}>{% set said = m.content.split('#')|last %}"
    "{% if m.role == 'assistant' and loop.last %}{{ m.content if '#' in m.content else '#' + said }}"
    "{% else %}{{ said }}{% endif %}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
# the system's words stand before the last question
MOVED = (
    "{% set last = messages|selectattr('role', 'equalto', 'user')|list|last %}{% for m in messages %}"
    "{% if m.role == 'user' %}[{% if m == last and messages[0].role == 'system' %}{{ messages[0].content }}:"
    "{% endif %}{{ m.content }}]{% elif m.role == 'assistant' %}{{ m.content }}</s>{% endif %}{% endfor %}"
)
# lets a reply begin with a thought, and leaves it out of what was said
THINKS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('#')|last }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>#{% endif %}"
)
WITH_TOOLS = (
    "{% if tools %}({% for t in tools %}{{ t.function.name }}{% endfor %}){% endif %}{% for m in messages %}"
    "<{{ m.role }}>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "{{ c.function.name }}{{ c.function.arguments|tojson }}{% endfor %}"
    "</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)


@pytest.fixture(scope="module")
def characters():
    """A tokenizer of characters: what is scored can be read."""
    words = {w: i for i, w in enumerate(["<pad>", "</s>", "<unk>", "\n", *map(chr, range(32, 127))])}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(words, [], unk_token="<unk>")), eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>",
    )  # fmt: skip


def shown(tokenizer, template, row, length=200):
    tokenizer.chat_template = template
    task = LM(tokenizer, length)
    return [task.shown(e).replace(" ", "") for e in task.examples([row])], task.note


def chat(*turns):
    return {"messages": [{"role": r, "content": c} for r, c in turns]}


TWO = chat(("user", "a"), ("assistant", "b"), ("user", "c"), ("assistant", "d"))


def test_the_assistant_alone_with_its_end(characters):
    told, note = shown(characters, OPENED, TWO)
    assert told == ["<user>a</s>\n<assistant>⟦b</s>⟧\n<user>c</s>\n<assistant>⟦d</s>⟧\n"]
    assert note == "loss on the assistant's turns"
    told, _ = shown(characters, OPENED, chat(("system", "s"), ("assistant", "b"), ("user", "c")))
    assert told == ["<system>s</s>\n<assistant>⟦b</s>⟧\n<user>c</s>\n"]
    told, _ = shown(characters, OPENED, chat(("assistant", "b"), ("user", "c")))
    assert told == ["<assistant>⟦b</s>⟧\n<user>c</s>\n"]


def test_a_template_that_does_not_open_a_reply(characters):
    told, _ = shown(characters, NAMED, chat(("user", "a"), ("assistant", "b")))
    assert told == ["<user>a</s>\n⟦<assistant>b</s>⟧\n"], "the model has to open it itself"


def test_marks_of_the_template_say_the_same(characters):
    said = "{{ m.content }}</s>"
    both = (
        "{% if m.role == 'assistant' %}{% generation %}" + said + "{% endgeneration %}{% else %}" + said + "{% endif %}"
    )
    marks = OPENED.replace(said + "\n", both + "{{ '\n' }}")
    assert shown(characters, marks, TWO) == shown(characters, OPENED, TWO)
    for spaced in ("{%- generation %}", "{%generation%}"):
        assert shown(characters, marks.replace("{% generation %}", spaced), TWO) == shown(characters, OPENED, TWO)


def test_turns_that_are_not_learned(characters):
    first, second = TWO["messages"][1], TWO["messages"][3]
    for skip in ({"weight": 0}, {"train": False}):
        row = {"messages": [TWO["messages"][0], {**first, **skip}, TWO["messages"][2], second]}
        told, _ = shown(characters, OPENED, row)
        assert told == ["<user>a</s>\n<assistant>b</s>\n<user>c</s>\n<assistant>⟦d</s>⟧\n"]


def test_earlier_turns_that_the_template_rewrites(characters):
    row = chat(("user", "a"), ("assistant", "t#b"), ("user", "c"), ("assistant", "d"))
    told, note = shown(characters, THOUGHTS, row)
    assert told == ["<user>a</s><assistant>⟦t#b</s>⟧", "<user>a</s><assistant>b</s><user>c</s><assistant>⟦#d</s>⟧"]
    assert note.endswith("1 chat whose earlier turns the template rewrites: each reply is an example of its own")
    told, _ = shown(characters, MOVED, chat(("system", "s"), *((m["role"], m["content"]) for m in TWO["messages"])))
    assert told == ["[s:a]⟦b</s>⟧", "[a]b</s>[s:c]⟦d</s>⟧"]
    told, note = shown(characters, MOVED, TWO)
    assert told == ["[a]⟦b</s>⟧[c]⟦d</s>⟧"] and "rewrites" not in note


def test_a_reply_that_begins_unlike_the_template_lets_it_begin(characters):
    told, note = shown(characters, THINKS, TWO)
    assert told == ["<user>a</s><assistant>⟦b</s>⟧<user>c</s><assistant>⟦d</s>⟧"]
    assert "1 chat whose turns lack what the template puts before a reply" in note


def test_prompts_and_completions_of_messages(characters):
    before, after = TWO["messages"][:3], TWO["messages"][3:]
    want = ["<user>a</s>\n<assistant>b</s>\n<user>c</s>\n<assistant>⟦d</s>⟧\n"]
    assert shown(characters, OPENED, {"prompt": before, "completion": after})[0] == want
    assert shown(characters, OPENED, {"prompt": before, "completion": "d"})[0] == want
    assert shown(characters, OPENED, {"prompt": "c", "completion": after})[0] == ["<user>c</s>\n<assistant>⟦d</s>⟧\n"]


def test_from_and_value(characters):
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    want = ["<user>a</s>\n<assistant>⟦b</s>⟧\n"]
    assert shown(characters, OPENED, {"conversations": turns})[0] == want
    assert shown(characters, OPENED, {"conversations": json.dumps(turns)})[0] == want
    told, _ = shown(characters, OPENED, {"conversations": turns, "system": "s"})
    assert told == ["<system>s</s>\n<user>a</s>\n<assistant>⟦b</s>⟧\n"]
    with pytest.raises(CommonweightError, match="row 1, message 1: from 'alien'; wanted human"):
        shown(characters, OPENED, {"conversations": [{"from": "alien", "value": "a"}]})


TOOLS = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
CALL = {"type": "function", "function": {"name": "look", "arguments": '{"at":"b"}'}}


def test_tools_and_their_calls_reach_the_template(characters):
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "", "tool_calls": [CALL]}]
    want = ['(look)<user>a</s><assistant>⟦look{"at":"b"}</s>⟧']
    for tools in (TOOLS, json.dumps(TOOLS), [TOOLS[0]["function"]]):
        assert shown(characters, WITH_TOOLS, {"messages": turns, "tools": tools})[0] == want
    share = [
        {"from": "human", "value": "a"},
        {"from": "function_call", "value": '{"name":"look","arguments":{"at":"b"}}'},
    ]
    assert shown(characters, WITH_TOOLS.replace("{{ m.content }}", "{{ m.content or '' }}"),
                 {"conversations": share, "tools": TOOLS})[0] == want  # fmt: skip
    joined = WITH_TOOLS.replace("{{ c.function.arguments|tojson }}", "{{ '' + c.function.arguments }}")
    assert shown(characters, joined, {"messages": turns, "tools": TOOLS})[0] == want


def test_tools_for_which_the_template_has_no_place(characters):
    row = {**TWO, "tools": TOOLS}
    assert shown(characters, OPENED, row)[1].endswith("1 chat whose tools the chat template leaves out")
    assert "tools" not in shown(characters, OPENED, {**TWO, "tools": None})[1]
    said = [TWO["messages"][0], {**TWO["messages"][1], "tool_calls": [CALL]}]
    assert shown(characters, OPENED, {"messages": said})[1].endswith(
        "1 chat whose calls of tools the chat template leaves out"
    )
    said[1].pop("content")
    with pytest.raises(CommonweightError, match=r"row 1: the chat template refuses .* some call tools and say nothing"):
        shown(characters, OPENED.replace("m.content", "m['content'] + ''"), {"messages": said})


def test_chats_that_are_cut_are_counted(characters):
    characters.chat_template = OPENED
    task = LM(characters, 40)
    rows = [TWO, chat(("user", "x" * 60), ("assistant", "b")), chat(("user", "a"), ("assistant", "y" * 60)), chat(("user", "a"))]  # fmt: skip  # noqa: E501
    assert len(task.examples(rows)) == 2
    assert task.note == (
        "loss on the assistant's turns; 2 chats cut off after 40 tokens; 1 chat left out, in which no assistant speaks "
        "within 40 tokens; 1 chat left out, in which the assistant says nothing that is scored"
    )
    with pytest.raises(CommonweightError, match="the assistant says nothing that is scored"):
        task.examples(rows[3:])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (3, "row 1, message 1: its content is 3; wanted a text"),
        ([{"type": "image"}], "row 1, message 1: a part of it is of type 'image'; wanted text alone"),
    ],
)
def test_contents_that_are_no_text(characters, content, message):
    with pytest.raises(CommonweightError, match=message):
        shown(characters, OPENED, {"messages": [{"role": "user", "content": content}]})


def test_contents_in_parts(characters):
    parts = [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]
    told, _ = shown(characters, OPENED, {"messages": [TWO["messages"][0], {"role": "assistant", "content": parts}]})
    assert told == ["<user>a</s>\n<assistant>⟦bc</s>⟧\n"]
