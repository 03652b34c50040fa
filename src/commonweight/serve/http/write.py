"""Answers and their pieces in the JSON of OpenAI's completions and chats."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from ..request import Answer, Logprob, Piece
from .calls import Calls
from .tokens import Tokens

Kind = Literal["chat", "completion"]
_OBJECTS = {
    "chat": ("chatcmpl-", "chat.completion", "chat.completion.chunk"),
    "completion": ("cmpl-", "text_completion", "text_completion"),
}


def reason(finish: str | None) -> str | None:
    """As the interface has it: what the limit of time ended is cut short as by the limit of length."""
    return "length" if finish == "timeout" else finish


@dataclass
class Usage:
    """Tokens of one call."""

    prompt: int = 0
    new: int = 0
    cached: int = 0

    @property
    def told(self) -> dict[str, Any]:
        return {
            "prompt_tokens": self.prompt, "completion_tokens": self.new, "total_tokens": self.prompt + self.new,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }  # fmt: skip


@dataclass(frozen=True)
class Echo:
    """A prompt that is given back: its text, its first token, and its log probabilities from the second one on, or
    None where none were asked for."""

    text: str
    first: int
    logs: Sequence[Logprob] | None


@dataclass
class Writer:
    """The JSON of one call. n: answers to each prompt. calls: makes what finds calls of tools in an answer. echoes: the
    prompts, where they are to stand before their answers."""

    kind: Kind
    model: str
    tokens: Tokens
    n: int = 1
    calls: Callable[[], Calls] | None = None
    echoes: Sequence[Echo] = ()
    id: str = field(default_factory=lambda: secrets.token_hex(12))
    created: int = field(default_factory=lambda: int(time.time()))
    _offsets: dict[int, int] = field(default_factory=dict)
    _calls: dict[int, Calls] = field(default_factory=dict)

    def whole(self, answers: Sequence[Sequence[Answer]], usage: Usage) -> dict[str, Any]:
        """answers: of each prompt its n."""
        choices = [self._choice(i * self.n + a.index, a) for i, found in enumerate(answers) for a in found]
        return {**self._head(_OBJECTS[self.kind][1]), "choices": choices, "usage": usage.told}

    def first(self, index: int) -> dict[str, Any]:
        """A chat's first chunk: who speaks."""
        return self._chunk([self._delta(index, {"role": "assistant", "content": ""}, None, None, None)])

    def echoed(self, index: int) -> dict[str, Any]:
        """The prompt as the first chunk of an answer."""
        echo = self.echoes[index // self.n]
        logs = None if echo.logs is None else self._logs(index, echo.logs, echo.first)
        return self._chunk([self._delta(index, {"content": echo.text}, logs, None, None)])

    def piece(self, prompt: int, piece: Piece) -> dict[str, Any] | None:
        """Its chunk, or None where there is nothing to tell yet."""
        if not (piece.text or piece.logprobs or piece.finish_reason):
            return None
        index = prompt * self.n + piece.index
        delta, finish = self._said(index, piece)
        if not (delta or piece.logprobs or finish):
            return None
        logs = self._logs(index, piece.logprobs) if piece.logprobs else None
        return self._chunk([self._delta(index, delta, logs, finish, _stopped(piece))])

    def _said(self, index: int, piece: Piece) -> tuple[dict[str, Any], str | None]:
        """(what a piece adds to its message, why the answer ended). Calls of tools are no content."""
        finish = reason(piece.finish_reason)
        if self.calls is None:
            return {"content": piece.text} if piece.text or not finish else {}, finish
        if index not in self._calls:
            self._calls[index] = self.calls()
        calls = self._calls[index]
        content, deltas = calls.feed(piece.text)
        if finish is not None:
            rest, more = calls.end()
            content, deltas = content + rest, deltas + more
        finish = "tool_calls" if finish == "stop" and calls.found else finish
        return ({"content": content} if content else {}) | ({"tool_calls": deltas} if deltas else {}), finish

    def last(self, usage: Usage) -> dict[str, Any]:
        return {**self._chunk([]), "usage": usage.told}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": _OBJECTS[self.kind][0] + self.id, "object": kind, "created": self.created, "model": self.model}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {**self._head(_OBJECTS[self.kind][2]), "choices": choices}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        echo = self.echoes[index // self.n] if self.echoes else None
        before = () if echo is None or echo.logs is None else echo.logs
        first = None if echo is None else echo.first
        logs = None if answer.logprobs is None else self._logs(index, [*before, *answer.logprobs], first)
        tail = {"logprobs": logs, "finish_reason": reason(answer.finish_reason), "stop_reason": _stopped(answer)}
        if self.kind == "completion":
            return {"index": index, "text": ("" if echo is None else echo.text) + answer.text, **tail}
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if self.calls is not None:
            calls = self.calls()
            content = calls.feed(answer.text)[0] + calls.end()[0]
            if calls.found:
                message |= {"content": content.strip() or None, "tool_calls": [c.told for c in calls.found]}
                tail["finish_reason"] = "tool_calls" if answer.finish_reason == "stop" else tail["finish_reason"]
        return {"index": index, "message": message, **tail}

    def _delta(
        self, index: int, delta: dict[str, Any], logs: Any, finish: str | None, stopped: str | int | None
    ) -> dict[str, Any]:
        tail = {"logprobs": logs, "finish_reason": finish, "stop_reason": stopped}
        if self.kind == "completion":
            return {"index": index, "text": delta.get("content", ""), **tail}
        return {"index": index, "delta": delta, **tail}

    def _logs(self, index: int, logs: Sequence[Logprob], first: int | None = None) -> dict[str, Any]:
        if self.kind == "chat":
            return self.tokens.chat(logs)
        offset = self._offsets.get(index, 0)
        told = self.tokens.completion(logs, offset, first)
        self._offsets[index] = offset + sum(map(len, told["tokens"]))
        return told


def _stopped(ended: Piece | Answer) -> str | int | None:
    """vLLM's: the stop string, or the token of `stop_token_ids`, that ended an answer."""
    return "timeout" if ended.finish_reason == "timeout" else ended.stopped_by


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One server-sent event."""
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n".encode("utf-8", "replace")


DONE = b"data: [DONE]\n\n"
