"""Which columns a language model is trained on: whole texts, prompts and completions, or chats. Where the columns allow
two readings, neither is taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ...core import CommonweightError, unknown
from ..rows import Row, there
from ..rows.columns import CHAT, COMPLETION, CONTEXT, INPUT, JUDGED, PROMPT, REJECTED, SYSTEM, WHOLE

FLAGS = "--prompt-column and --completion-column"


@dataclass(frozen=True)
class Whole:
    """All of a text is scored."""

    text: str


@dataclass(frozen=True)
class Pair:
    """The completion is scored. more: a column that belongs to the prompt, as Alpaca's `input` to its `instruction`."""

    prompt: str
    completion: str
    more: str | None = None


@dataclass(frozen=True)
class Chat:
    """The assistant's turns are scored."""

    messages: str


Form = Whole | Pair | Chat


def form(
    rows: Sequence[Row], text: str | None = None, prompt: str | None = None, completion: str | None = None
) -> Form:
    """The columns that were asked for, or those that people use. Raises: CommonweightError where that is not clear."""
    names = there(rows)
    if text is None and completion is None:
        _no_rejected(rows, names)
    found = _form(rows, names, text, prompt, completion)
    if not isinstance(found, Whole):
        _no_bad(rows, names)
    return found


def _form(rows: Sequence[Row], names: list[str], text: str | None, prompt: str | None, completion: str | None) -> Form:
    for what, asked in (("text", text), ("prompt", prompt), ("completion", completion)):
        if asked is not None and asked not in names:
            raise unknown(f"{what} column", asked, names)
    if text is not None:
        if prompt or completion:
            raise CommonweightError(f"--text-column {text} beside a prompt or a completion: give one or the other")
        return Chat(text) if _is_chat(rows, text) else Whole(text)
    lower = {n.lower(): n for n in reversed(names)}
    if prompt is not None or completion is not None:
        prompt = prompt or _one(lower, PROMPT, completion, "prompt", names)
        completion = completion or _one(lower, COMPLETION, prompt, "completion", names)
        return Pair(prompt, completion, _more(lower, prompt))
    chats = [lower[n] for n in CHAT if n in lower and (n == "messages" or _is_chat(rows, lower[n]))]
    if not chats:
        found = _texts(rows, names, lower)
        return _whole_prompt(rows, lower, found) if isinstance(found, Pair) else found
    if beside := _beside(rows, lower, SYSTEM[1:]):  # `system` becomes the first turn, see `chats`
        raise CommonweightError(
            f"the column {beside!r} beside {chats[0]!r} would be left out of the chat; write it into {chats[0]!r} as a "
            f"first turn of the role system, or train without it: --text-column {chats[0]}"
        )
    return Chat(chats[0])


def _no_bad(rows: Sequence[Row], names: Sequence[str]) -> None:
    """Raises: CommonweightError for rows that say which answers are bad: all of them would be learnt as good ones."""
    for name in (n for n in names if n.lower() in JUDGED):
        values = [v.strip().lower() if isinstance(v, str) else v for v in (r.get(name) for r in rows)]
        if any(v is False or v == "false" for v in values) and all(
            v is None or isinstance(v, bool) or v in ("true", "false", "") for v in values
        ):
            bad = sum(v is False or v == "false" for v in values)
            raise CommonweightError(
                f"{bad} of {len(rows)} rows have {name!r} false: these rows are judged answers (as KTO learns from), "
                "and a language model would learn the bad ones like the good ones. Keep the rows that are true, and "
                f"leave the column {name!r} out; learning from bad answers is not built"
            )


def _no_rejected(rows: Sequence[Row], names: Sequence[str]) -> None:
    """Raises: CommonweightError for preference rows where it was not said which column is learnt."""
    lower = {n.lower(): n for n in names}
    if (bad := next((lower[n] for n in REJECTED if n in lower and any(r.get(lower[n]) for r in rows)), None)) is None:
        return
    raise CommonweightError(
        f"the column {bad!r} holds answers that were rejected (preference rows, as DPO learns from), which a language "
        "model cannot learn to avoid. Name the better answers: --completion-column chosen (--text-column chosen, "
        "where they are whole texts or chats)"
    )


def _whole_prompt(rows: Sequence[Row], lower: dict[str, str], pair: Pair) -> Pair:
    """The pair; refused where a column that belongs to its prompt would be left out."""
    beside = _beside(rows, lower, CONTEXT, pair.prompt, pair.more)
    if beside is None:
        return pair
    raise CommonweightError(
        f"the column {beside!r} beside {pair.prompt!r} and {pair.completion!r} would be left out of the pair; "
        f"write it into the prompt's column, or name the two columns with {FLAGS}"
    )


def _beside(rows: Sequence[Row], lower: dict[str, str], usual: Sequence[str], *used: str | None) -> str | None:
    """The first of these columns that some row fills, and that is not used."""
    return next(
        (lower[c] for c in usual if c in lower and lower[c] not in used and any(r.get(lower[c]) for r in rows)), None
    )


def _texts(rows: Sequence[Row], names: list[str], lower: dict[str, str]) -> Form:
    prompts, completions, wholes = ([lower[n] for n in kind if n in lower] for kind in (PROMPT, COMPLETION, WHOLE))
    if "prompt" in lower and "completion" in lower:
        return Pair(lower["prompt"], lower["completion"])
    if "instruction" in lower and len(completions) == 1:
        more = _more(lower, lower["instruction"])
        if all(p in (lower["instruction"], more) for p in prompts):
            return Pair(lower["instruction"], completions[0], more)
    if len(prompts) == len(completions) == 1 and "text" not in lower:
        return Pair(prompts[0], completions[0])
    told = ", ".join(sorted(names))
    if prompts and completions:
        also = ["text"] if "text" in lower else []
        raise CommonweightError(
            f"the columns are {told}; several of them could be trained on ({', '.join(prompts + completions + also)}); "
            f"name yours with {FLAGS}, or --text-column"
        )
    if prompts or completions:
        half, lacks, flag = (
            (prompts[0], "completion", "completion") if prompts else (completions[0], "prompt", "prompt")
        )
        raise CommonweightError(
            f"the columns are {told}; {half!r} looks like one half of a pair, and there is no {lacks}; name the "
            f"other half with --{flag}-column, or train on all of one column with --text-column"
        )
    if "text" in lower:
        return Whole(lower["text"])
    if len(wholes) == 1:
        return Whole(wholes[0])
    raise CommonweightError(
        f"no text column among {told}" + (f" that stands out ({', '.join(wholes)})" if wholes else "") + "; wanted "
        "text; or prompt and completion, question and answer, instruction and output; or messages; name yours with "
        f"--text-column, or with {FLAGS} (a CSV file without a header line: --no-header)"
    )


def _one(lower: dict[str, str], usual: Sequence[str], but: str | None, what: str, names: list[str]) -> str:
    found = [lower[n] for n in usual if n in lower and lower[n] != but]
    if len(found) > 1 and lower.get(what) in found:
        return lower[what]
    if what == "prompt" and "instruction" in lower and lower["instruction"] in found:
        return lower["instruction"]
    if len(found) != 1:
        raise CommonweightError(
            f"a {'completion' if what == 'prompt' else 'prompt'} without a {what}: the columns are {', '.join(names)}; "
            f"name it with --{what}-column"
        )
    return found[0]


def _more(lower: dict[str, str], prompt: str) -> str | None:
    return next((lower[n] for n in INPUT if n in lower), None) if prompt.lower() == "instruction" else None


def _is_chat(rows: Sequence[Row], name: str) -> bool:
    """Whether the first value there is a list of objects, or looks like one as text."""
    value = next((r[name] for r in rows if r.get(name)), None)
    if isinstance(value, str):
        return (value.lstrip().startswith("[") and '"role"' in value) or '"from"' in value
    return isinstance(value, list | tuple) and bool(value) and isinstance(value[0], dict)
