"""Language modelling: whole texts, completions of prompts, or the assistant's turns of a chat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import groupby
from typing import ClassVar

from torch import Tensor, nn

from ...core import CommonweightError
from ..rows import TEXT, Row, column, text_of
from . import scored
from .base import Example, Given, Seen, batches, marked, need, pad, padded
from .scored import IGNORE


class LM(Given):
    """Mean cross entropy per scored token. Metrics: loss in nats per token, bits per byte of the scored text.

    Rows: ``messages`` through the tokenizer's chat template; or ``prompt`` and ``completion``, of which the
    completion is scored; or ``text``, cut into pieces of max_length. A sequence's first token is predicted from
    nothing and not scored, nor are its bytes counted; the end token is scored and has no byte.
    """

    usual_length: ClassVar[int] = 512
    better: ClassVar[tuple[str, bool]] = ("loss", False)

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        need(rows)
        self.seen = Seen(rows=len(rows))
        there = set(rows[0])
        if self.text_column is None and "messages" in there:
            return self._chats(rows)
        if self.text_column is None and {"prompt", "completion"} <= there:
            self.seen.how = "loss on the completions only"
            return [self._completion(r, i) for i, r in enumerate(rows)]
        if self.text_column is None and there & {"prompt", "completion"} and not there & set(TEXT):
            lacks = min({"prompt", "completion"} - there)
            raise CommonweightError(f"the columns are {', '.join(sorted(there))}; there is no {lacks} beside it")
        name = column(rows, self.text_column, TEXT, "text")
        self.seen.how = f"loss on all of {name!r}"
        return [e for i, r in enumerate(rows) for e in self._pieces(text_of(r, name, i))]

    def _end(self) -> list[int]:
        end = self.tokenizer.eos_token_id
        return [] if end is None else [end]

    def _pieces(self, text: str) -> list[Example]:
        ids = [*self.tokenizer(text, verbose=False)["input_ids"], *self._end()]
        n = self.max_length
        if 1 < len(ids) <= n:
            return [{"input_ids": ids, "labels": ids, "bytes": len(text.encode()) - self._bytes(ids[:1])}]
        pieces = [ids[i : i + n] for i in range(0, len(ids), n)]
        return [
            {"input_ids": p, "labels": p, "bytes": self._bytes(p) - self._bytes(p[:1])} for p in pieces if len(p) > 1
        ]

    def _completion(self, row: Row, i: int) -> Example:
        prompt, completion = row["prompt"], text_of(row, "completion", i)
        if not isinstance(prompt, str):
            raise CommonweightError(f"row {i + 1}: 'prompt' is {prompt!r}; wanted a text")
        before = self.tokenizer(prompt, verbose=False)["input_ids"] if prompt else []
        if before and before[-1] in (self.tokenizer.eos_token_id, self.tokenizer.sep_token_id):
            before = before[:-1]
        after = [*self.tokenizer(completion, add_special_tokens=False, verbose=False)["input_ids"], *self._end()]
        kept = after[: self.max_length - 1]
        # A prompt that does not fit loses its beginning: what stands next to the completion says most about it.
        before = before[-(self.max_length - len(kept)) :] or self._start()
        size = len(completion.encode()) if kept == after else self._bytes(kept)
        if not before:
            size -= self._bytes(kept[:1])
        return {"input_ids": [*before, *kept], "labels": [IGNORE] * len(before) + kept, "bytes": size}

    def _start(self) -> list[int]:
        start = self.tokenizer.bos_token_id
        return [] if start is None else [start]

    def _chats(self, rows: Sequence[Row]) -> list[Example]:
        template = self.tokenizer.chat_template
        if not template:
            raise CommonweightError(
                "rows with 'messages' need a chat template, and the tokenizer has none; give prompt and completion"
            )
        masks = "{% generation" in str(template) or "{%- generation" in str(template)
        self.seen.how = (
            "loss on the assistant's turns" if masks
            else "loss on whole chats: the template does not mark the assistant's turns"
        )  # fmt: skip
        out = []
        for i, row in enumerate(rows):
            try:
                got = self.tokenizer.apply_chat_template(
                    row["messages"], return_dict=True, return_assistant_tokens_mask=masks, tokenize=True
                )
            except Exception as e:  # a template is a program of its own
                raise CommonweightError(f"row {i + 1}: the chat template refuses these messages: {e}") from e
            ids = got["input_ids"][: self.max_length]
            marks = got["assistant_masks"][: self.max_length] if masks else [1] * len(ids)
            labels = [t if m else IGNORE for t, m in zip(ids, marks)]
            if not any(t != IGNORE for t in labels[1:]):
                continue  # cut off before the assistant spoke
            unscored = self._bytes(labels[:1]) if labels[0] != IGNORE else 0
            size = self._bytes([t for t in labels if t != IGNORE]) - unscored
            out.append({"input_ids": ids, "labels": labels, "bytes": size})
        if not out:
            raise CommonweightError(f"no assistant speaks within {self.max_length} tokens of a chat; raise max_length")
        return out

    def _bytes(self, ids: list[int]) -> int:
        return len(self.tokenizer.decode(ids, skip_special_tokens=True).encode())

    def tokens(self, example: Example) -> tuple[int, int]:
        return len(example["input_ids"]), sum(t != IGNORE for t in example["labels"][1:])

    def shown(self, example: Example) -> str:
        out = []
        for on, run in groupby(zip(example["input_ids"], example["labels"]), lambda pair: pair[1] != IGNORE):
            text = self.tokenizer.decode([i for i, _ in run])
            out.append(marked(text) if on else text)
        return "".join(out)

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = padded([e["input_ids"] for e in examples], self.tokenizer.pad_token_id)
        return {**batch, "labels": pad([e["labels"] for e in examples], IGNORE)}

    def items(self, batch: dict[str, Tensor]) -> int:
        return int((batch["labels"][:, 1:] != IGNORE).sum())

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
        inputs = {k: v for k, v in batch.items() if k != "labels"}
        return scored.loss(model, inputs, batch["labels"]) / max(1, self.items(batch))

    def measure(self, model: nn.Module, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        device = next(model.parameters()).device
        nll, tokens = 0.0, 0
        for _, batch in batches(self, examples, batch_size, device):
            tokens += self.items(batch)
            nll += scored.measure(model, batch, batch.pop("labels"))
        size = sum(e["bytes"] for e in examples)
        bits = nll / math.log(2) / max(1, size)
        return {"loss": nll / max(1, tokens), "bits_per_byte": bits, "tokens": tokens, "n": len(examples)}
