"""An epoch of `adapt` over chats of mixed length: packed, against the same rows without packing.

Without packing `adapt` groups rows of like length into batches, which is the best that it can do then; a second row
of the table has them in the order in which they come, as other trainers do by default. All sides read the same tokens
in one epoch, so the ratio of times is that of tokens per second.

    python -m benchmarks.packing
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from commonweight import Host, adapt
from commonweight.adapt.sampler import Mixed

from .harness import alternate, store
from .shapes import llama

CHATS, ROOM, SEQUENCES, ROWS = 64, 512, 2, 8
TEMPLATE = (
    "{% for m in messages %}{{ m.role }} {% if m.role == 'assistant' %}{% generation %}{{ m.content }} [END] "
    "{% endgeneration %}{% else %}{{ m.content }} [END] {% endif %}{% endfor %}"
)


def tokenizer() -> PreTrainedTokenizerFast:
    words = ["[PAD]", "[UNK]", "[END]", "user", "assistant", *(f"w{i}" for i in range(4000))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", eos_token="[END]")
    made.model_max_length, made.chat_template = ROOM, TEMPLATE
    return made


def chats() -> list[dict[str, Any]]:
    """A question and an answer each; tokens of a chat: lognormal, the median 100, a tenth over 320, at most 500."""
    draw = random.Random(0)

    def text(n: int) -> str:
        return " ".join(f"w{draw.randrange(4000)}" for _ in range(n))

    out = []
    for _ in range(CHATS):
        n = min(max(round(draw.lognormvariate(4.6, 0.9)), 16), 500)
        asked = max(4, round(n * draw.uniform(0.1, 0.5)))
        turns = {"user": text(asked), "assistant": text(n - asked)}
        out.append({"messages": [{"role": r, "content": c} for r, c in turns.items()]})
    return out


class AsTheyCome(Mixed):
    """Rows in a drawn order, whatever their length."""

    def __iter__(self):
        g = torch.Generator().manual_seed(self.seed)
        return iter(torch.randperm(sum(self.sizes), generator=g).tolist())


def sides() -> dict[str, Callable[[], int]]:
    """Each trains an epoch anew and gives the tokens that it has read."""
    host, words, rows = Host(llama().eval()), tokenizer(), chats()

    def epoch(**how: Any) -> int:
        seen: list[Any] = []
        adapt.adapt(
            host, "t", rows, task="lm", method="lora", options={"rank": 8}, epochs=1, max_length=ROOM, tokenizer=words,
            progress=seen.append, **how,
        )  # fmt: skip
        host.remove("t")
        return seen[-1].tokens

    def as_they_come() -> int:
        with mock.patch("commonweight.adapt.trainer.Mixed", AsTheyCome):
            return epoch(batch_size=ROWS)

    return {
        "packed": lambda: epoch(batch_size=SEQUENCES, packing=True),
        "grouped by length": lambda: epoch(batch_size=ROWS),
        "as they come": as_they_come,
    }


def main(rounds: int = 7) -> list[dict]:
    found, out = sides(), []
    if len(read := {side() for side in found.values()}) != 1:
        raise SystemExit(f"the sides read {sorted(read)} tokens")
    tokens = read.pop()
    for other, target in (("grouped by length", 1.5), ("as they come", None)):
        timed = alternate(found[other], found["packed"], rounds, warm=0)
        timed["ours_ms"], timed["theirs_ms"] = timed["theirs_ms"], timed["ours_ms"]
        what = f"tokens per second in training, llama-8x512, {CHATS} chats of {tokens} tokens: packed / rows {other}"
        per_second = {k: round(tokens / timed[f"{k}_ms"] * 1e3, 1) for k in ("ours", "theirs")}
        out.append({"what": what, "unit": "times faster", "target": target, **timed, "tokens_per_second": per_second})
    store("packing", out)
    return out


if __name__ == "__main__":
    for row in main():
        print(row)
