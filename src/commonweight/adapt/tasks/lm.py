"""Language modelling: whole texts, completions of prompts, or the assistant's turns of a chat."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any, ClassVar

from torch import Tensor, nn

from ...core import CommonweightError
from ...host.embedded import before_scored
from ...host.weights import device_of
from ..rows import Row, text_of
from . import packing, scored, turns
from .base import Example, Given, Seen, batches, marked, need, pad, padded, rows_of
from .chats import Conversation, of_messages, of_pair
from .forms import Chat, Pair, Whole, form
from .scored import IGNORE
from .texts import Texts


class LM(Given):
    """Mean cross entropy per scored token. Metrics: loss in nats per token, bits per byte of the scored text.

    Rows: whole texts, cut into pieces of max_length; prompts and completions, of which the completion is scored; or
    chats through the tokenizer's template, of which the assistant's turns are scored: see `forms`, `texts`, `chats` and
    `turns`. A sequence's first token is predicted from nothing and not scored, nor are its bytes counted; the end token
    is scored and has no byte. truncation_side: where a chat, or a pair as one text, loses what is over max_length;
    None: chats their end, pairs first the beginning of the prompt. Whole texts are cut into pieces, and lose nothing.
    """

    usual_length: ClassVar[int] = 512
    better: ClassVar[tuple[str, bool]] = ("loss", False)
    by_prompt = False  # whether a batch says which tokens come before the first that is scored

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        need(rows)
        self.seen = Seen(rows=len(rows))
        if self.label_column is not None:
            raise CommonweightError(
                f"--label-column {self.label_column}: a language model has no labels; for the text that it is to write "
                f"say --completion-column {self.label_column}"
            )
        found = form(rows, self.text_column, self.prompt_column, self.completion_column)
        told = {**vars(found), "rest of the prompt": getattr(found, "more", None)}
        self.seen.used = {what: name for what, name in told.items() if name is not None and what != "more"}
        if isinstance(found, Chat):
            return self._chats(rows, lambda row, i: of_messages(row, found.messages, i))
        self.texts = Texts(self.tokenizer)
        if isinstance(found, Whole):
            self.seen.how = f"loss on all of {found.text!r}"
            return [e for i, r in enumerate(rows) for e in self._pieces(text_of(r, found.text, i))]
        if any(isinstance(r.get(c), list) for r in rows for c in (found.prompt, found.completion)):
            return self._chats(rows, lambda row, i: of_pair(row, found.prompt, found.completion, i))
        self.seen.how = "loss on the completions only"
        if self.tokenizer.chat_template:
            self.seen.remark = "texts are read as they are, without the tokenizer's chat template; for it give messages"
        made = [self._completion(r, found, i) for i, r in enumerate(rows)]
        if not any(made):
            raise CommonweightError(f"no completion begins within {self.max_length} tokens; raise max_length")
        return [e for e in made if e is not None]

    def _pieces(self, text: str) -> list[Example]:
        ids, n = self.texts.whole(text), self.max_length
        if 1 < len(ids) <= n:
            return [{"input_ids": ids, "labels": ids, "bytes": self._size(text, ids) - self._bytes(ids[:1])}]
        pieces = [ids[i : i + n] for i in range(0, len(ids), n)]
        if len(pieces) > 1:
            self.seen.counted[f"rows longer than {n} tokens, cut into pieces"] += 1
        else:
            self.seen.counted["rows of one token left out"] += 1
        found = [
            {"input_ids": p, "labels": p, "bytes": self._bytes(p) - self._bytes(p[:1])} for p in pieces if len(p) > 1
        ]
        return found[:1] + [{**e, "continued": True} for e in found[1:]]

    def _completion(self, row: Row, columns: Pair, i: int) -> Example | None:
        prompt, completion = row.get(columns.prompt), text_of(row, columns.completion, i)
        more = row.get(columns.more) if columns.more is not None else None
        for name, value in ((columns.prompt, prompt), (columns.more, more or "")):
            if not isinstance(value, str):
                raise CommonweightError(f"row {i + 1}: {name!r} is {value!r}; wanted a text")
        if more and more.strip():
            prompt = f"{prompt}\n\n{more}"
        before, after = self.texts.pair(prompt, completion)  # type: ignore[arg-type]
        if self.truncation_side is not None:
            return self._cut_pair(before, after, completion)
        kept = after[: self.max_length - 1]
        if len(kept) < len(after):
            self.seen.counted[f"completions cut at the end, over {self.max_length} tokens"] += 1
        # A prompt that does not fit loses its beginning: what stands next to the completion says most about it.
        room = self.max_length - len(kept)
        if len(before) > room:
            self.seen.counted[f"prompts cut at the beginning, over {self.max_length} tokens with the completion"] += 1
        before = before[-room:]
        size = self._size(completion, kept) if kept == after else self._bytes(kept)
        if not before:
            size -= self._bytes(kept[:1])
        return {"input_ids": [*before, *kept], "labels": [IGNORE] * len(before) + kept, "bytes": size}

    def _cut_pair(self, before: list[int], after: list[int], completion: str) -> Example | None:
        """The pair as one text, cut on the side that was asked for; None where nothing that is scored is left."""
        n, counted = self.max_length, self.seen.counted
        ids, labels = self._side([*before, *after]), self._side([IGNORE] * len(before) + after)
        if len(before) + len(after) > n:
            counted[f"pairs cut {self._where}"] += 1
        if all(t == IGNORE for t in labels[1:]):
            counted[f"pairs left out, of whose completion nothing is within {n} tokens"] += 1
            return None
        left = [t for t in labels if t != IGNORE]
        size = self._size(completion, left) if left == after else self._bytes(left)
        return {"input_ids": ids, "labels": labels, "bytes": size - self._bytes(labels[:1] if labels[0] >= 0 else [])}

    def _side(self, tokens: list[Any]) -> list[Any]:
        return tokens[-self.max_length :] if self.truncation_side == "left" else tokens[: self.max_length]

    @property
    def _where(self) -> str:
        return (
            f"off before the last {self.max_length} tokens"
            if self.truncation_side == "left"
            else (f"off after {self.max_length} tokens")
        )

    def _chats(self, rows: Sequence[Row], of: Callable[[Row, int], Conversation]) -> list[Example]:
        if not self.tokenizer.chat_template:
            raise CommonweightError(
                "rows with 'messages' need a chat template, and the tokenizer has none; give prompt and completion"
            )
        self.seen.how = "loss on the assistant's turns"
        out, n, counted = [], self.max_length, self.seen.counted
        for i, row in enumerate(rows):
            chat = of(row, i)
            try:
                made = turns.tokens(self.tokenizer, chat, counted)
            except Exception as e:  # a template is a program of its own
                bare = any(m.get("tool_calls") and not m.get("content") for m in chat.messages)
                place = "; some call tools and say nothing, for which it has no place" if bare else ""
                raise CommonweightError(f"row {i + 1}: the chat template refuses these messages: {e}{place}") from e
            before = len(out)
            of_them = "chats" if len(made) == 1 else "turns"
            for every, on in made:
                ids, labels = self._side(every), self._side([t if m else IGNORE for t, m in zip(every, on)])
                if not any(on[1:]):
                    counted[f"{of_them} left out, in which the assistant says nothing that is scored"] += 1
                elif all(t == IGNORE for t in labels[1:]):
                    counted[f"{of_them} left out, in which no assistant speaks within {n} tokens"] += 1
                else:
                    if len(every) > n:
                        counted[f"{of_them} cut {self._where}"] += 1
                    unscored = self._bytes(labels[:1]) if labels[0] != IGNORE else 0
                    size = self._bytes([t for t in labels if t != IGNORE]) - unscored
                    more = {"continued": True} if len(out) > before else {}
                    out.append({"input_ids": ids, "labels": labels, "bytes": size, **more})
        if not out:
            if not any("within" in what for what in counted):
                raise CommonweightError("in these chats the assistant says nothing that is scored")
            raise CommonweightError(f"no assistant speaks within {n} tokens of a chat; raise max_length")
        return out

    def _size(self, text: str, ids: Sequence[int]) -> int:
        """Bytes of a whole text, but for special tokens that it brings."""
        brought = any(t in text for t in self.tokenizer.all_special_tokens)
        return self._bytes(ids) if brought else len(text.encode())

    def _bytes(self, ids: Sequence[int]) -> int:
        return len(self.tokenizer.decode(list(ids), skip_special_tokens=True).encode())

    def tokens(self, example: Example) -> tuple[int, int]:
        return len(example["input_ids"]), sum(t != IGNORE for t in example["labels"][1:])

    def shown(self, example: Example) -> str:
        out, labels = [], [IGNORE, *example["labels"][1:]]
        for on, run in groupby(zip(example["input_ids"], labels), lambda pair: pair[1] != IGNORE):
            text = self.tokenizer.decode([i for i, _ in run])
            out.append(marked(text) if on else text)
        return "".join(out)

    def pack(self, examples: Sequence[Example]) -> list[Example]:
        return packing.packed(examples, self.max_length)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        """Of packed rows without an attention mask: who sees whom follows from the positions."""
        if "position_ids" in examples[0]:
            ids = pad([e["input_ids"] for e in examples], self.tokenizer.pad_token_id)
            batch = {"input_ids": ids, "position_ids": pad([e["position_ids"] for e in examples], 0)}
            return {**batch, "labels": pad([e["labels"] for e in examples], IGNORE)}
        batch = padded([e["input_ids"] for e in examples], self.tokenizer.pad_token_id)
        labels = pad([e["labels"] for e in examples], IGNORE)
        if self.by_prompt:
            batch["prompt_mask"] = before_scored(labels).long() * batch["attention_mask"]
        return {**batch, "labels": labels}

    def items(self, batch: dict[str, Tensor]) -> int:
        return int((batch["labels"][:, 1:] != IGNORE).sum())

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        return scored.loss(model, inputs, batch["labels"]) / max(1, self.items(batch))

    def measure(self, model: nn.Module, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        device = device_of(model)
        nll, right, tokens = 0.0, 0, 0
        for _, batch in batches(self, examples, batch_size, device):
            tokens += self.items(batch)
            found = scored.measure(model, batch, batch.pop("labels"))
            nll, right = nll + found.nll, right + found.right
        size = sum(e["bytes"] for e in examples)
        bits = nll / math.log(2) / max(1, size)
        loss, accuracy = nll / max(1, tokens), right / max(1, tokens)
        return {
            "loss": loss, "bits_per_byte": bits, "token_accuracy": accuracy, "tokens": tokens, "n": rows_of(examples)
        }  # fmt: skip
