"""Rows, and the names that their columns usually have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...core import CommonweightError, unknown

Row = dict[str, Any]

TEXT = ("text", "sentence", "content", "question", "review", "query", "input")
LABEL = ("label", "labels", "class", "category", "target", "intent", "coarse_label")
PAIRS = (("anchor", "positive"), ("sentence1", "sentence2"), ("query", "passage"), ("question", "answer"))
# Of a language model. INPUT belongs to an instruction (Alpaca, Dolly); CONTEXT would be missing from a prompt.
PROMPT = ("prompt", "instruction", "question", "query", "problem", "input")
COMPLETION = ("completion", "response", "output", "answer", "solution")
INPUT = ("input", "context")
SYSTEM = ("system", "system_prompt", "history")
CONTEXT = ("context", "passage", "document", *SYSTEM, "choices", "options")
WHOLE = ("text", "content", "sentence", "review", "document")
CHAT = ("messages", "conversations", "conversation", "chat", "dialogue")
JUDGED = ("label", "labels", "desirable", "good", "chosen", "is_good", "preferred", "thumbs_up", "feedback")
REJECTED = ("rejected", "rejected_response", "rejected_completion", "dispreferred")
IMAGE = ("image", "images", "img", "picture", "pixel_values")
AUDIO = ("audio", "sound", "speech", "wav")
SENSES = (*IMAGE, *AUDIO, "video")
TOOLS = ("tools", "functions")
TEMPLATE = "chat_template_kwargs"
KNOWN = {
    *TEXT, *LABEL, *(c for pair in PAIRS for c in pair), *PROMPT, *COMPLETION, *CONTEXT, *CHAT, *TOOLS, "id", "idx",
}  # fmt: skip


FLAGS = ("text", "label", "prompt", "completion", "task")  # of `adapt`: --text-column and so on


def there(rows: Sequence[Row]) -> list[str]:
    """Every column that some row has, in the order of their first appearance."""
    return list(dict.fromkeys(k for r in rows for k in r))


def column(rows: Sequence[Row], asked: str | None, usual: Sequence[str], what: str) -> str:
    """The column that holds `what`: the one asked for, else the first usual name."""
    names = there(rows)
    if asked is not None:
        if asked not in names:
            raise unknown(f"{what} column", asked, names)
        return asked
    for name in usual:
        found = next((c for c in names if c.lower() == name), None)
        if found is not None:
            return found
    flag = "text" if what in ("image", "audio") else what.split()[0]
    pair = any(n.lower() in COMPLETION for n in names) or any(n.lower() in CHAT for n in names)
    hint = "; texts to be continued and chats are for --task lm" if pair and usual is LABEL else ""
    if other := next((n for n in names if str(n).lower() in SENSES), None):
        hint += (
            f"; {other!r} is of another sense: a base that reads it alone is adapted with --task classify, others are "
            "trained in Python, see docs/training.md"
        )
    told = ", ".join(map(str, names))
    if flag not in FLAGS:
        raise CommonweightError(
            f"no {what} column among {told}; no flag names it: call that column {' or '.join(usual)} in the file"
        )
    raise CommonweightError(
        f"no {what} column among {told}; usual names: {', '.join(usual)}; "
        f"name yours with --{flag}-column (a CSV file without a header line: --no-header){hint}"
    )


def text_of(row: Row, name: str, i: int) -> str:
    value = row.get(name)
    if not isinstance(value, str) or not value.strip():
        raise CommonweightError(f"row {i + 1}: {name!r} is {value!r}; wanted a text")
    return value
