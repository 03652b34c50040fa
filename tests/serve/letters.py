"""A tokenizer whose tokens are letters, as structured answers need them: each is a byte of ASCII."""

from __future__ import annotations

from typing import Any

import transformers as tf
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from .served import VOCAB

SPECIAL = ("<pad>", "<bos>", "<eos>", "[TOOL_CALLS]")
LETTERS = [c for c in map(chr, range(33, 127)) if c not in "`|~"]  # 91


def letters(template: str | None = None) -> Any:
    """Of 97 tokens: four special ones, space, line end, and letters; <eos> is 2, as the models of `served` have it."""
    words = [*SPECIAL, "Ġ", "Ċ", *LETTERS]
    assert len(words) == VOCAB
    raw = Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, []))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    raw.add_special_tokens([AddedToken(w, special=True) for w in SPECIAL])
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    fast.chat_template = template
    return fast
