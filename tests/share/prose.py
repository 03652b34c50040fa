"""A page of English by characters, and a heal of a few steps on it."""

from __future__ import annotations

from typing import Any

import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from commonweight import share

TEXT = """the river rose in the night and by morning the lower fields were under water. the farmer walked along the bank
with his dog and counted the sheep that had come up to the road. three were missing. he called across to the mill but
nobody heard him, for the wheel was turning faster than it had ever turned. in the village they said that the bridge
would not hold until the evening, and the children were kept at home. an old woman who had seen the flood of her youth
told them that the water would go as it had come, quietly, and leave the fields better than before. at noon the rain
stopped. the dog found two of the sheep behind the church, and the third stood on a small hill and would not move."""
LETTERS = ["<pad>", "<unk>", "<end>", *sorted(set(TEXT.replace("\n", " ")))]
ROWS = [{"text": s.strip()} for s in TEXT.replace("\n", " ").split(".") if s.strip()]


def tokenizer() -> Any:
    raw = Tokenizer(models.WordLevel({c: i for i, c in enumerate(LETTERS)}, unk_token="<unk>"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Split("", "isolated"), decoders.Fuse()
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", eos_token="<end>", model_max_length=64
    )


def healed(small: Any, tokens: int = 6000, **how: Any) -> list[float]:
    """The losses of the steps."""
    how = {"lr": 1e-2, "batch_size": 4, "max_length": 48, "warmup_ratio": 0.0, **how}
    done = share.heal(small, rows=ROWS, tokens=tokens, tokenizer=tokenizer(), **how)
    return [c["loss"] for c in done.curve if "loss" in c]
