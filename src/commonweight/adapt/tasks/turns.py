"""Which tokens of a rendered chat the assistant says, for any template.

A template with generation marks says it itself. For another, the chat is rendered up to each of the assistant's turns,
with the template's own opening of a reply, and once more with that turn: what the second has beyond the first is the
turn. Where the whole chat does not begin with the chat up to a turn (Qwen 3 drops the thoughts of earlier turns,
Mistral moves the system's message to the last question), each turn becomes an example of its own, as it looks when it
is said.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from ...core import CommonweightError
from .chats import Conversation, Message

MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
Scored = tuple[list[int], list[bool]]  # tokens, and which of them are scored
Render = Callable[..., str]


def tokens(tokenizer: Any, chat: Conversation, counted: Counter[str]) -> list[Scored]:
    """The examples of a chat. counted: what should be known about it is added. Raises: whatever the template raises;
    CommonweightError where a turn cannot be told from what is before it."""
    chat = fitting(tokenizer, chat)
    template = tokenizer.get_chat_template(None, chat.more.get("tools"))
    if MARKS.search(template) and not chat.chosen:
        got = tokenizer.apply_chat_template(
            chat.messages, return_dict=True, return_assistant_tokens_mask=True, tokenize=True, **chat.more
        )
        if any(got["assistant_masks"]) or not any(map(chat.scored, range(len(chat.messages)))):
            lost(tokenizer, chat, counted)
            return [(list(got["input_ids"]), [bool(m) for m in got["assistant_masks"]])]

    def render(messages: Sequence[Message], **more: Any) -> str:
        if not messages:
            return ""
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **chat.more, **more)

    lost(tokenizer, chat, counted)
    whole = render(chat.messages)
    turns = [k for k in range(len(chat.messages)) if chat.scored(k)]
    parts, odd = [], False
    for k in turns:
        upto = whole if k == len(chat.messages) - 1 else render(chat.messages[: k + 1])
        start, prompted = begin(render, chat.messages[: k + 1], upto)
        odd |= not prompted
        parts.append((upto, start, ending(tokenizer, upto)))
    if odd:
        counted["chats whose turns lack what the template puts before a reply (a thought, say)"] += 1
    if all(whole.startswith(upto[:end]) for upto, _, end in parts):
        return [marked(tokenizer, whole, [(start, end) for _, start, end in parts])]
    counted["chats whose earlier turns the template rewrites: each reply is an example of its own"] += 1
    return [marked(tokenizer, upto[:end], [(start, end)]) for upto, start, end in parts]


def begin(render: Render, messages: Sequence[Message], upto: str) -> tuple[int, bool]:
    """(where the last message begins, whether that is where the template lets a reply begin)."""
    if len(messages) > 1:
        try:
            before = render(messages[:-1], add_generation_prompt=True)
        except Exception:  # some templates want a question among the messages
            before = None
        if before is not None and upto.startswith(before):
            return len(before), True
    # The opening of a reply is another one (a thought's, say): the turn begins where another content would change it.
    start = common(upto, render([*messages[:-1], {**messages[-1], "content": "\x01"}]))
    if start >= len(upto):
        raise CommonweightError(
            f"message {len(messages)}: the chat template does not show where it begins; give prompt and completion"
        )
    return start, len(messages) == 1


def ending(tokenizer: Any, upto: str) -> int:
    """Where a turn ends: with its last special token, not with the line break that some templates put after it."""
    text = upto.rstrip()
    special = {*tokenizer.all_special_tokens, *(str(t) for t in tokenizer.added_tokens_decoder.values())}
    return len(text) if any(s and text.endswith(s) for s in special) else len(upto)


def marked(tokenizer: Any, text: str, spans: Sequence[tuple[int, int]]) -> Scored:
    """Tokens of a rendered chat; one is scored where it begins within a span of characters."""
    if tokenizer.is_fast:
        got = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        on = [any(a <= start < b for a, b in spans) for start, _ in got["offset_mapping"]]
        return list(got["input_ids"]), on
    ids = list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    on = [False] * len(ids)
    for span in spans:  # without places of tokens: how many tokens two texts share from their beginning
        a, b = (common(ids, tokenizer(text[:n], add_special_tokens=False, verbose=False)["input_ids"]) for n in span)
        on[a:b] = [True] * (b - a)
    return ids, on


def common(a: Sequence[Any], b: Sequence[Any]) -> int:
    """How far two texts, or two lists of tokens, are the same."""
    return next((n for n, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def fitting(tokenizer: Any, chat: Conversation) -> Conversation:
    """The chat with its calls' arguments as this template wants them: as objects, or, where it joins texts, as JSON."""
    if not any(m.get("tool_calls") for m in chat.messages):
        return chat
    try:
        tokenizer.apply_chat_template(chat.messages, tokenize=False, **chat.more)
    except TypeError:
        return Conversation([_written(m) for m in chat.messages], chat.first, chat.more)
    return chat


def _written(m: Message) -> Message:
    def call(c: Any) -> Any:
        f = c.get("function", c)
        f = {**f, "arguments": json.dumps(f["arguments"], ensure_ascii=False)} if "arguments" in f else f
        return {**c, "function": f} if "function" in c else f

    return {**m, "tool_calls": [call(c) for c in m["tool_calls"]]} if m.get("tool_calls") else m


def lost(tokenizer: Any, chat: Conversation, counted: Counter[str]) -> None:
    """Counts tools, and calls of tools, for which the template has no place."""
    calls = any(m.get("tool_calls") for m in chat.messages)
    if not calls and "tools" not in chat.more:
        return

    def render(messages: Sequence[Message], more: dict[str, Any]) -> str:
        try:
            return tokenizer.apply_chat_template(list(messages), tokenize=False, **more)
        except Exception:  # it cannot do without: they are not lost
            return ""

    whole = render(chat.messages, chat.more)
    if "tools" in chat.more and whole == render(chat.messages, {k: v for k, v in chat.more.items() if k != "tools"}):
        counted["chats whose tools the chat template leaves out"] += 1
    bare = [{k: v for k, v in m.items() if k != "tool_calls"} for m in chat.messages]
    if calls and whole == render(bare, chat.more):
        counted["chats whose calls of tools the chat template leaves out"] += 1
