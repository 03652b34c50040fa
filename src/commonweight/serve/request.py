"""What is asked of an engine, and what it answers."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..core import CommonweightError

Prompt = str | Sequence[int] | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class Request:
    """One question to one tenant.

    prompt: text; token ids, which are taken as they are; or messages (`{"role": ..., "content": ...}`), which go
    through the tokenizer's chat template. tenant: a name, None for the plain base, or a weighted sum as `a+0.5*b`.
    task: of a tenant that goes by tasks (`poly tasks=...`), which.

    max_new_tokens: None: as many as the model and the engine's cache have room for, at most 256. min_tokens: before
    so many no token ends the answer, and no stop string is looked for.

    temperature: 0 takes the likeliest token. top_p, top_k (0: all), min_p narrow the choice, in the order top_k,
    top_p, min_p after temperature. repetition_penalty divides (or multiplies, below zero) the logits of tokens that
    stand in the prompt or the answer; presence_penalty and frequency_penalty are taken off the logits of tokens in the
    answer, once and per occurrence. logit_bias: {token id: what is added}. seed: the same seed gives the same draw at
    each position, whatever else is in the batch; None: a new one. stop: strings that end the answer and are left out
    of its text. stop_token_ids: tokens that end it beside the model's own; ignore_eos: those of the model do not.
    logprobs: how many of the likeliest tokens to report at each position beside the chosen one (0 to 20), with log
    probabilities of the model itself (before temperature and penalties); None: none. n: so many answers.
    structured: what the answer must be, one of {"json": schema}, {"json_object": True}, {"regex": text}, {"choice":
    [texts]} and {"grammar": text of Lark}; a schema with a word that cannot be kept to is refused. special: special
    tokens that stay in the answer's text, where others are left out. tools: for the chat template. timeout: seconds
    after which it ends, with what it has. cache_salt: prefixes are found among requests of the same salt alone, so that
    nobody learns from how soon an answer comes what others have asked the same tenant; None: among those without one.
    """

    prompt: Prompt
    tenant: str | None = None
    max_new_tokens: int | None = None
    min_tokens: int = 0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    seed: int | None = None
    stop: str | Sequence[str] = ()
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    n: int = 1
    structured: Mapping[str, Any] | None = None
    special: Sequence[str] = ()
    tools: Sequence[Mapping[str, Any]] | None = None
    timeout: float | None = None
    cache_salt: str | None = None
    task: str | None = None

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    def check(self) -> None:
        """Raises: CommonweightError with the first thing that is wrong in it."""
        for name, (kind, wanted) in _KINDS.items():
            if not isinstance(value := getattr(self, name), kind) or isinstance(value, bytes):
                raise CommonweightError(f"{name} is {value!r}; wanted {wanted}")
        if self.max_new_tokens is not None:
            whole("max_new_tokens", self.max_new_tokens, 1, None)
        whole("min_tokens", self.min_tokens, 0, self.max_new_tokens)
        if self.min_tokens and self.structured is not None:
            raise CommonweightError(
                f"min_tokens is {self.min_tokens} beside structured, whose answer ends where its form does; "
                "leave one out"
            )
        whole("top_k", self.top_k, 0, None)
        whole("n", self.n, 1, 64)
        ranges = (
            ("temperature", 0, 100), ("top_p", 0, 1), ("min_p", 0, 1), ("repetition_penalty", 0, 100),
            ("presence_penalty", -100, 100), ("frequency_penalty", -100, 100),
        )  # fmt: skip
        for name, least, most in ranges:
            value = getattr(self, name)
            if not _number(value) or not least <= value <= most:
                raise CommonweightError(f"{name} is {value!r}; wanted a number from {least} to {most}")
        for name in ("top_p", "repetition_penalty"):
            if getattr(self, name) == 0:
                raise CommonweightError(f"{name} is 0; wanted a number above 0")
        if self.seed is not None:
            whole("seed", self.seed, 0, None)
        if self.logprobs is not None:
            whole("logprobs", self.logprobs, 0, 20)
        if not all(isinstance(s, str) and s for s in self.stops) or len(self.stops) > 16:
            raise CommonweightError(f"stop is {self.stop!r}; wanted at most 16 strings, none of them empty")
        for token in self.stop_token_ids:
            whole("stop_token_ids", token, 0, None)
        for token, by in self.logit_bias.items():
            whole("a token in logit_bias", token, 0, None)
            if not _number(by) or not -100 <= by <= 100:
                raise CommonweightError(f"logit_bias of token {token} is {by!r}; wanted a number from -100 to 100")
        if self.cache_salt is not None and not (isinstance(self.cache_salt, str) and self.cache_salt):
            raise CommonweightError(f"cache_salt is {self.cache_salt!r}; wanted text that is not empty, or None")
        if self.timeout is not None and not (_number(self.timeout) and self.timeout > 0):
            raise CommonweightError(f"timeout is {self.timeout!r}; wanted seconds above 0, or None")


# what those must be that are gone through, or looked into
_KINDS: dict[str, tuple[Any, str]] = {
    "stop": (str | Collection, "a string, or several"),
    "stop_token_ids": (Collection, "token ids"),
    "ignore_eos": (bool, "True or False"),
    "logit_bias": (Mapping, "an object of token ids and numbers"),
    "structured": (Mapping | None, "an object, or None"),
    "special": (Collection, "strings"),
    "tools": (Sequence | None, "a list of tools, or None"),
}


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def whole(name: str, value: Any, least: int, most: int | None) -> None:
    """Raises: CommonweightError for what is no whole number from least to most."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least or (most is not None and value > most):
        raise CommonweightError(
            f"{name} is {value!r}; wanted a whole number >= {least}{f' and <= {most}' if most else ''}"
        )


@dataclass(frozen=True)
class Logprob:
    """Of one position: the chosen token, its log probability, and the likeliest tokens with theirs, likeliest first."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Piece:
    """What came with one step: new tokens and new text. The last one of an answer says why it ended.

    index: which of the request's n answers. finish_reason: "stop", "length", "cancelled", "timeout" or "error".
    stopped_by: the stop string, or the token of `stop_token_ids`, that ended it.
    """

    tokens: tuple[int, ...] = ()
    text: str = ""
    index: int = 0
    logprobs: tuple[Logprob, ...] = ()
    finish_reason: str | None = None
    error: str | None = None
    stopped_by: str | int | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True)
class Answer:
    """One whole answer. tokens: with the token that ended it, as `generate` has it; text: without special tokens and
    without the stop string. logprobs: one a token, or None. prompt_tokens, cached_tokens: how long the prompt was, and
    how much of it the cache of prefixes had. choices: all n answers of the request, this one first.
    stopped_by: see `Piece`."""

    tokens: list[int]
    text: str
    finish_reason: str
    error: str | None = None
    logprobs: list[Logprob] | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    index: int = 0
    choices: tuple[Answer, ...] = ()
    stopped_by: str | int | None = None
