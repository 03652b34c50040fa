"""Tokens of plain texts, with the tokens before and after them that belong there once."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass
class Texts:
    """Tokens by a tokenizer. front: what it puts before a text. back: what it puts after one, and the end token."""

    tokenizer: Any
    front: list[int] = field(init=False)
    back: list[int] = field(init=False)

    def __post_init__(self) -> None:
        plain, whole = self.plain("a"), list(self.tokenizer("a")["input_ids"])
        n = len(plain)
        at = next((k for k in range(len(whole) - n + 1) if whole[k : k + n] == plain), None)
        self.front, self.back = ([], []) if at is None or not n else (whole[:at], whole[at + n :])
        end = self.tokenizer.eos_token_id
        if end is not None and self.back[-1:] != [end]:
            self.back = [*self.back, end]

    def plain(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def opened(self, ids: list[int]) -> list[int]:
        """With the front, unless a text (one that a chat template made, say) brings it."""
        return ids if self.front and ids[: len(self.front)] == self.front else [*self.front, *ids]

    def closed(self, ids: list[int], text: str) -> list[int]:
        """With the back, as far as the text does not bring it."""
        end = self.tokenizer.eos_token
        if end and text.rstrip().endswith(end):
            return ids
        had = next((n for n in range(len(self.back), 0, -1) if ids[-n:] == self.back[:n]), 0)
        return [*ids, *self.back[had:]]

    def whole(self, text: str) -> list[int]:
        return self.closed(self.opened(self.plain(text)), text)

    def pair(self, prompt: str, completion: str) -> tuple[list[int], list[int]]:
        """(tokens of the prompt, of the completion). The prompt's are those that it has alone, as when it is answered;
        the completion's those that follow it in the whole text, where the whole begins with the prompt's."""
        before, whole = self.plain(prompt) if prompt else [], self.plain(prompt + completion)
        after = whole[len(before) :] if whole[: len(before)] == before else self.plain(completion)
        start = self.tokenizer.bos_token_id
        if not prompt and start is not None:
            return [start], self.closed(after[1:] if after[:1] == [start] else after, completion)
        return self.opened(before) if prompt else [], self.closed(after, completion)
