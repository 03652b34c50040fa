"""Tokens become text as they come: whole characters only, and nothing that may turn out to be a stop string."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_HALF = "\ufffd"  # what a decoder answers for a character of which bytes are missing
_KEEP = 6  # tokens before the new ones that are decoded with them, for what a tokenizer joins


class Decoder:
    """feed(token) -> the text that is certain now; rest() -> what is left at the end. Both together are the answer's
    text, to the character as `tokenizer.decode` has it.

    stops: strings that end the text; `stopped` is then the one that did, and the text ends before it. special: special
    tokens that are text here, others are left out. least: tokens in whose text no stop is looked for.
    tokenizer None: no text. Cost: two decodings of a few tokens each.
    """

    def __init__(self, tokenizer: Any, stops: Sequence[str] = (), special: Sequence[str] = (), least: int = 0):
        self.tokenizer, self.stops, self.least = tokenizer, stops, least
        self._mute = _others(tokenizer, special) if special and tokenizer is not None else None
        self.tokens: list[int] = []
        self.stopped: str | None = None
        self._start = self._done = 0  # tokens: where the decoded window starts; what is text already
        self._held = ""  # text that may be the first part of a stop string

    def feed(self, token: int) -> str:
        self.tokens.append(token)
        if self.tokenizer is None or self.stopped is not None:
            return ""
        new = self._decode(len(self.tokens))
        return "" if new is None else self._safe(new)

    def rest(self) -> str:
        if self.tokenizer is None or self.stopped is not None:
            return ""
        new = self._decode(len(self.tokens), final=True) or ""
        out = self._safe(new)
        if self.stopped is not None:
            return out
        held, self._held = self._held, ""
        return out + held

    def _decode(self, end: int, final: bool = False) -> str | None:
        """The text of the tokens that came since the last certain ones; None while a character is incomplete."""
        if self._done == end:
            return None
        before = self._text(self._start, self._done)
        whole = self._text(self._start, end)
        if not final and whole.endswith(_HALF):
            return None
        new = whole[len(before) :] if whole.startswith(before) else whole
        if new:  # behind special tokens alone, which are no text, a decoder would take the next space for the first
            self._start = max(0, self._done - _KEEP)
        self._done = end
        return new

    def _text(self, start: int, end: int) -> str:
        if start == end:
            return ""
        tokens, mute = self.tokens[start:end], self._mute
        if mute is not None:
            tokens = [t for t in tokens if t not in mute]
        return self.tokenizer.decode(tokens, skip_special_tokens=mute is None, clean_up_tokenization_spaces=False)

    def _safe(self, new: str) -> str:
        if not self.stops or len(self.tokens) <= self.least:
            return new
        text = self._held + new
        found = [(i, s) for s in self.stops if (i := text.find(s)) >= 0]
        if found:
            at, self.stopped = min(found, key=lambda f: f[0])
            self._held = ""
            return text[:at]
        keep = max((k for s in self.stops for k in range(1, len(s)) if text.endswith(s[:k])), default=0)
        self._held = text[len(text) - keep :] if keep else ""
        return text[: len(text) - keep] if keep else text


def _others(tokenizer: Any, special: Sequence[str]) -> frozenset[int]:
    """The special tokens that are not these."""
    return frozenset(i for i, t in tokenizer.added_tokens_decoder.items() if t.special and t.content not in special)
