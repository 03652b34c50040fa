"""Structured output: which tokens may come next, so that an answer is of a JSON schema, an expression or a grammar.

llguidance does it: per answer a matcher, which is told each token that was taken. A step that is done again changes
nothing, since a matcher goes on only with a token that an answer takes.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..core import CommonweightError

KINDS = "json", "json_object", "regex", "choice", "grammar"
# white space between two tokens of JSON has a bound, since small models may write it for ever; no schema turns off that
# a word which cannot be kept to is an error
_JSON = {"whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,32}", "lenient": False}


class Grammar:
    """What one answer may be. allowed(): (V,) bool, of the next token. take(token): goes on. over: nothing can follow.

    Raises: CommonweightError from `take` for a token that was not allowed, and where a grammar takes too much work.
    """

    def __init__(self, matcher: Any, size: int):
        self._matcher, self._size = matcher, size

    def allowed(self) -> Tensor:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        return torch.from_numpy(np.unpackbits(bits, bitorder="little")[: self._size].astype(bool))

    def take(self, token: int) -> None:
        if not self._matcher.is_stopped():
            self._matcher.consume_token(token)
            self._check()

    @property
    def over(self) -> bool:
        return self._matcher.is_stopped()

    def copy(self) -> Grammar:
        return Grammar(self._matcher.deep_copy(), self._size)

    def _check(self) -> None:
        if self._matcher.is_error():
            raise CommonweightError(f"the structure cannot be followed: {_first(self._matcher.get_error())}")


class Grammars:
    """Grammars for one model. tokenizer: its own; ends: tokens that end an answer. The vocabulary is read once."""

    def __init__(self, tokenizer: Any, vocabulary: int, ends: Collection[int]):
        self.tokenizer, self.vocabulary, self.ends = tokenizer, vocabulary, ends
        self._lock, self._read = threading.Lock(), None

    def of(self, structured: Mapping[str, Any]) -> Grammar:
        """structured: vLLM's form, one of `KINDS` and its value. Cost: the schema's; the first time, the vocabulary's.

        Raises: CommonweightError for what is no such thing, and for what a schema says and cannot be kept to.
        """
        llguidance = installed()
        text = source(structured)
        with self._lock:
            if self._read is None:
                self._read = self._vocabulary()
        matcher = llguidance.LLMatcher(self._read, text, log_level=0)
        if matcher.is_error():
            kind = next(iter(structured))
            raise CommonweightError(f"structured output: this {kind} cannot be kept to: {_first(matcher.get_error())}")
        return Grammar(matcher, self.vocabulary)

    def _vocabulary(self) -> Any:
        if self.tokenizer is None:
            raise CommonweightError("structured output needs a tokenizer, and none lies beside the model")
        ends = sorted(self.ends) or [self.tokenizer.eos_token_id]
        try:
            return import_module("llguidance.hf").from_tokenizer(
                self.tokenizer, n_vocab=self.vocabulary, eos_token=ends
            )
        except (ValueError, TypeError, RuntimeError) as e:
            raise CommonweightError(f"structured output cannot be done with this model's tokenizer: {e}") from e


def installed() -> Any:
    """llguidance. Raises: CommonweightError where it is missing."""
    try:
        return import_module("llguidance")
    except ImportError as e:
        raise CommonweightError("structured output wants llguidance: pip install 'commonweight[serve]'") from e


def source(structured: Mapping[str, Any]) -> str:
    """The grammar as llguidance reads it. Raises: CommonweightError naming what is wrong."""
    given = {k: v for k, v in structured.items() if v is not None}
    if len(given) != 1 or (kind := next(iter(given))) not in KINDS:
        told = ", ".join(map(str, given)) or "nothing"
        raise CommonweightError(f"structured output: came {told}; wanted exactly one of {', '.join(KINDS)}")
    value = given[kind]
    matcher = installed().LLMatcher
    if kind == "json_object":
        if value is not True:
            raise CommonweightError(f"structured output: json_object is {value!r}; wanted true, or leave it out")
        kind, value = "json", {"type": "object"}
    if kind == "json":
        return matcher.grammar_from_json_schema(_schema(value), overrides=_JSON)
    if kind == "choice":
        if not _texts(value):
            raise CommonweightError(
                f"structured output: choice is {value!r}; wanted a list of texts, none of them empty"
            )
        return "start: " + " | ".join(json.dumps(v, ensure_ascii=False) for v in value)
    if not isinstance(value, str) or not value:
        raise CommonweightError(f"structured output: {kind} is {value!r}; wanted text")
    return matcher.grammar_from_regex(value) if kind == "regex" else value


def _schema(value: Any) -> str:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as e:
            raise CommonweightError(f"structured output: the schema is no JSON: {e}") from e
    if not isinstance(value, Mapping | bool):
        raise CommonweightError(f"structured output: the schema is {value!r}; wanted an object")
    return json.dumps(value)


def _texts(value: Any) -> bool:
    return (
        isinstance(value, Sequence) and not isinstance(value, str) and bool(value)
        and all(isinstance(v, str) and v for v in value)
    )  # fmt: skip


def _first(error: str) -> str:
    """The first lines of a message, which may hold the whole grammar."""
    return " ".join(error.split())[:300]
