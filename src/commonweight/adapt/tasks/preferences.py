"""Rows that say which answer is wanted: pairs (dpo, orpo), answers with a mark (kto), prompts and a reward (grpo).

The losses and loops are TRL's, see `..preferences`. Here: rows, looked at before the first step, and measurement.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...core import CommonweightError
from ...host.weights import device_of
from ..rewards import rewards, to_call
from ..rows import Row, column
from ..rows.columns import COMPLETION, PROMPT
from .base import Example, Given, Seen, batches, marked, need, pad, padded
from .chats import messages
from .scored import IGNORE
from .texts import Texts

CHOSEN, REJECTED, MARK = ("chosen",), ("rejected",), ("label", "labels")
TRUE, FALSE = ("true", "1", "yes", "good", "1.0"), ("false", "0", "no", "bad", "-1", "0.0", "-1.0")


class _Answers(Given):
    """What pairs and marked answers share: a prompt and answers as texts, or all of them as lists of messages."""

    usual_length: ClassVar[int] = 512
    mixes: ClassVar[bool] = False

    def start(self, rows: Sequence[Row], how: str, used: dict[str, str]) -> None:
        self.seen = Seen(rows=len(rows), how=how, used=used)
        self.texts = Texts(self.tokenizer)

    def value(self, row: Row, name: str, i: int) -> Any:
        """A text, or messages as the chat template takes them."""
        given = row.get(name)
        if isinstance(given, str) and not given.lstrip().startswith("[{"):
            if not given.strip():
                raise CommonweightError(f"row {i + 1}: {name!r} is empty; wanted a text")
            return given
        if given is None:
            raise CommonweightError(f"row {i + 1}: {name!r} is missing; wanted a text or a list of messages")
        if not self.tokenizer.chat_template:
            raise CommonweightError(
                f"row {i + 1}: {name!r} has messages; the tokenizer has no chat template for them; give texts"
            )
        return [{k: v for k, v in m.items() if k in ("role", "content")} for m in messages(given, i, name)]

    def alike(self, values: dict[str, Any], i: int) -> None:
        kinds = {isinstance(v, str) for v in values.values()}
        if len(kinds) > 1:
            raise CommonweightError(f"row {i + 1}: {' and '.join(values)} mix texts and messages; give one of the two")

    def tokenised(self, prompt: Any, answer: Any) -> tuple[list[int], list[int]]:
        """(tokens, labels) of an answer to a prompt, at most max_length."""
        if isinstance(prompt, str):
            before, after = self.texts.pair(prompt, answer)
        else:
            render = self.tokenizer.apply_chat_template
            whole = self.texts.plain(render([*prompt, *answer], tokenize=False))
            before = self.texts.plain(render(prompt, tokenize=False, add_generation_prompt=True))
            if whole[: len(before)] != before:
                before = self.texts.plain(render(prompt, tokenize=False))
            before, after = whole[: len(before)], whole[len(before) :]
        ids, labels = [*before, *after], [IGNORE] * len(before) + after
        if len(ids) > (n := self.max_length):
            where = "before the last" if self.truncation_side == "left" else "after"
            self.seen.counted[f"answers cut off {where} {n} tokens"] += 1
            kept = slice(-n, None) if self.truncation_side == "left" else slice(n)
            ids, labels = ids[kept], labels[kept]
        return ids, labels

    def tokens(self, example: Example) -> tuple[int, int]:
        pairs = [(example[f"{k}_ids"], example[f"{k}_labels"]) for k in ("good", "bad") if f"{k}_ids" in example]
        return sum(len(ids) for ids, _ in pairs), sum(t != IGNORE for _, labels in pairs for t in labels[1:])

    def likely(self, model: nn.Module, made: Sequence[tuple[list[int], list[int]]], size: int) -> Tensor:
        """Mean log probability of each answer's tokens, (n,)."""
        out = torch.zeros(len(made))
        examples: list[Example] = [{"input_ids": i, "labels": lab} for i, lab in made]
        for places, batch in batches(self, examples, size, device_of(model)):  # type: ignore[arg-type]
            labels = batch.pop("labels")[:, 1:]
            logits = model(**batch, use_cache=False).logits[:, :-1].float()
            scored = labels != IGNORE
            got = logits.log_softmax(-1).gather(-1, labels.clamp(min=0)[..., None])[..., 0]
            out[places] = ((got * scored).sum(1) / scored.sum(1).clamp(min=1)).cpu()
        return out

    def collate(self, examples: Sequence[Example]) -> dict[str, Tensor]:
        batch = padded([e["input_ids"] for e in examples], self.tokenizer.pad_token_id)
        return {**batch, "labels": pad([e["labels"] for e in examples], IGNORE)}


class Pairs(_Answers):
    """Rows: prompt, chosen, rejected; or chosen and rejected as whole chats. Metrics: accuracy, how often the chosen
    answer is the more probable one per token; margin, by how many nats."""

    better: ClassVar[tuple[str, bool]] = ("accuracy", True)

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        need(rows)
        chosen, rejected = (column(rows, None, n, n[0]) for n in (CHOSEN, REJECTED))
        prompt = _prompt(rows, self.prompt_column, needed=False)
        used = {"chosen": chosen, "rejected": rejected} | ({"prompt": prompt} if prompt else {})
        self.start(rows, "the chosen answer is preferred to the rejected one", used)
        return [self._row(r, i, prompt, chosen, rejected) for i, r in enumerate(rows)]

    def _row(self, row: Row, i: int, prompt: str | None, chosen: str, rejected: str) -> Example:
        values = {n: self.value(row, n, i) for n in ([prompt] if prompt else []) + [chosen, rejected]}
        good, bad = values[chosen], values[rejected]
        if good == bad:
            raise CommonweightError(f"row {i + 1}: {chosen!r} and {rejected!r} are the same; nothing is preferred")
        if prompt:
            before = values[prompt]
        else:
            n = next((k for k, (a, b) in enumerate(zip(good, bad)) if a != b), min(len(good), len(bad)))
            if isinstance(good, str):  # whole words
                n = max(good.rfind(c, 0, n) for c in " \n\t") if n else 0
            n = max(n, 0)
            before, good, bad = good[:n], good[n:], bad[n:]
            if not before or not good or not bad:
                raise CommonweightError(
                    f"row {i + 1}: without a prompt, {chosen!r} and {rejected!r} must begin alike and then differ"
                )
        self.alike({prompt or "prompt": before, chosen: good, rejected: bad}, i)
        a, b = self.tokenised(before, good), self.tokenised(before, bad)
        return {
            "prompt": before, "chosen": good, "rejected": bad, "good_ids": a[0], "good_labels": a[1], "bad_ids": b[0],
            "bad_labels": b[1],
        }  # fmt: skip

    def given(self, examples: Sequence[Example]) -> list[Row]:
        """As TRL takes them."""
        return [{k: e[k] for k in ("prompt", "chosen", "rejected")} for e in examples]

    def shown(self, example: Example) -> str:
        return f"{_text(example['prompt'])}\n{marked(_text(example['chosen']))}\nnot: {_text(example['rejected'])}"

    @torch.no_grad()
    def measure(self, model: nn.Module, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        good, bad = (
            self.likely(model, [(e[f"{k}_ids"], e[f"{k}_labels"]) for e in examples], batch_size)
            for k in ("good", "bad")
        )
        return {
            "accuracy": float((good > bad).float().mean()),
            "margin": float((good - bad).mean()),
            "n": len(examples),
        }


class Marked(_Answers):
    """Rows: prompt, completion, label (whether it is wanted). Metrics: accuracy, how often a wanted answer is more
    probable per token than one that is not; margin, by how many nats in the mean."""

    better: ClassVar[tuple[str, bool]] = ("accuracy", True)

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        need(rows)
        prompt = _prompt(rows, self.prompt_column)
        answer = column(rows, self.completion_column, COMPLETION, "completion")
        label = column(rows, self.label_column, MARK, "label")
        self.start(rows, "answers are wanted or not", {"prompt": prompt or "", "completion": answer, "label": label})
        return [self._row(r, i, prompt or "", answer, label) for i, r in enumerate(rows)]

    def _row(self, row: Row, i: int, prompt: str, answer: str, label: str) -> Example:
        values = {n: self.value(row, n, i) for n in (prompt, answer)}
        self.alike(values, i)
        said = str(row.get(label)).strip().lower()
        if said not in TRUE + FALSE:
            raise CommonweightError(f"row {i + 1}: {label!r} is {row.get(label)!r}; wanted true or false")
        ids, labels = self.tokenised(values[prompt], values[answer])
        return {
            "prompt": values[prompt], "completion": values[answer], "label": said in TRUE, "good_ids": ids,
            "good_labels": labels,
        }  # fmt: skip

    def given(self, examples: Sequence[Example]) -> list[Row]:
        return [{k: e[k] for k in ("prompt", "completion", "label")} for e in examples]

    def shown(self, example: Example) -> str:
        wanted = "" if example["label"] else "not wanted: "
        return f"{_text(example['prompt'])}\n{wanted}{marked(_text(example['completion']))}"

    @torch.no_grad()
    def measure(self, model: nn.Module, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        got = self.likely(model, [(e["good_ids"], e["good_labels"]) for e in examples], batch_size)
        wanted = torch.tensor([e["label"] for e in examples])
        good, bad = got[wanted], got[~wanted]
        if not len(good) or not len(bad):
            raise CommonweightError("all rows to measure have the same label; wanted some of both")
        more = (good[:, None] > bad).float() + (good[:, None] == bad).float() / 2
        return {"accuracy": float(more.mean()), "margin": float(good.mean() - bad.mean()), "n": len(examples)}


class Prompts(_Answers):
    """Rows: prompt, and whatever the reward function reads. Metric: reward, of greedy answers."""

    better: ClassVar[tuple[str, bool]] = ("reward", True)
    answer_length: int = 256

    def examples(self, rows: Sequence[Row]) -> list[Example]:
        need(rows)
        if self.reward is None:
            raise CommonweightError("the task grpo needs a reward: --reward module:function, or reward=function")
        self.reward = to_call(self.reward)
        prompt = _prompt(rows, self.prompt_column) or ""
        self.start(rows, "answers are sampled and rewarded", {"prompt": prompt})
        return [self._row(r, i, prompt) for i, r in enumerate(rows)]

    def _row(self, row: Row, i: int, prompt: str) -> Example:
        value = self.value(row, prompt, i)
        if not isinstance(value, str):
            text = self.tokenizer.apply_chat_template(value, tokenize=False, add_generation_prompt=True)
            ids = self.texts.plain(text)
        else:
            ids = self.texts.opened(self.texts.plain(value))
        return {"row": {**row, "prompt": value}, "good_ids": ids[-self.max_length :], "good_labels": []}

    def given(self, examples: Sequence[Example]) -> list[Row]:
        return [e["row"] for e in examples]

    def shown(self, example: Example) -> str:
        return _text(example["row"]["prompt"])

    @torch.no_grad()
    def measure(self, model: nn.Module, examples: Sequence[Example], batch_size: int) -> dict[str, float]:
        device, total = device_of(model), 0.0
        for start in range(0, len(examples), batch_size):
            some = examples[start : start + batch_size]
            longest = max(len(e["good_ids"]) for e in some)
            left = [longest - len(e["good_ids"]) for e in some]
            pad_id = self.tokenizer.pad_token_id
            ids = torch.tensor([[pad_id] * n + e["good_ids"] for n, e in zip(left, some)], device=device)
            mask = torch.tensor([[0] * n + [1] * (longest - n) for n in left], device=device)
            made = model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=mask, max_new_tokens=self.answer_length, do_sample=False,
                pad_token_id=pad_id,
            )  # fmt: skip
            answers = self.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
            total += sum(rewards(self.reward, [e["row"] for e in some], answers))
        return {"reward": total / len(examples), "n": len(examples)}


def _prompt(rows: Sequence[Row], asked: str | None, needed: bool = True) -> str | None:
    there = {k.lower() for r in rows for k in r}
    if asked is None and not needed and not there & set(PROMPT):
        return None
    return column(rows, asked, PROMPT, "prompt")


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "\n".join(f"{m['role']}: {m.get('content') or ''}" for m in value)
