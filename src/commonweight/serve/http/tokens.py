"""Tokens as clients see them: their text, their bytes, their log probabilities."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from ..request import Logprob

_HALF = "\ufffd"


class Tokens:
    """The texts of a tokenizer's tokens; without a tokenizer, a token is called by its number."""

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self.text = lru_cache(1 << 16)(self._text)

    def _text(self, token: int) -> str:
        if self.tokenizer is None:
            return f"token_id:{token}"
        return self.tokenizer.decode([token], skip_special_tokens=False, clean_up_tokenization_spaces=False)

    def bytes(self, token: int) -> list[int]:
        """Of a token that is a part of a character, its own bytes where the tokenizer tells them."""
        text = self.text(token)
        if _HALF in text:
            raw = str(self.tokenizer.convert_ids_to_tokens(token))
            if found := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", raw):
                return [int(found[1], 16)]
            if all(c in _byte_level() for c in raw):
                return [_byte_level()[c] for c in raw]
        return list(text.encode("utf-8", "replace"))

    def chat(self, logs: Sequence[Logprob]) -> dict[str, Any]:
        """The form of chats."""
        content = [{**self._one(x.token, x.logprob), "top_logprobs": [self._one(t, p) for t, p in x.top]} for x in logs]
        return {"content": content, "refusal": None}

    def _one(self, token: int, logprob: float) -> dict[str, Any]:
        return {"token": self.text(token), "logprob": _finite(logprob), "bytes": self.bytes(token)}

    def completion(self, logs: Sequence[Logprob], offset: int, first: int | None = None) -> dict[str, Any]:
        """The form of completions; offset: characters of the answer before these. first: a token before them that has
        no probability, since it begins the prompt."""
        before: list[Any] = [] if first is None else [None]
        texts, offsets = [self.text(t) for t in ([] if first is None else [first])], []
        texts += [self.text(x.token) for x in logs]
        for text in texts:
            offsets.append(offset)
            offset += len(text)
        # the chosen token stands among the likeliest, as in both interfaces; two tokens may have one text
        tops = []
        for x in logs:
            top: dict[str, float] = {}
            for t, p in ((x.token, x.logprob), *x.top):
                top.setdefault(self.text(t), _finite(p))
            tops.append(top)
        return {
            "tokens": texts, "token_logprobs": [*before, *(_finite(x.logprob) for x in logs)],
            "top_logprobs": [*before, *tops],
            "text_offset": offsets,
        }  # fmt: skip


def _finite(logprob: float) -> float:
    """JSON has no infinity; vLLM's least."""
    return max(logprob, -9999.0)


@lru_cache(1)
def _byte_level() -> dict[str, int]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    return {c: b for b, c in bytes_to_unicode().items()}
