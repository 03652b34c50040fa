"""Models and data small enough to train in a test: real folders that from_pretrained reads."""

from __future__ import annotations

import json
import random
from pathlib import Path

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = [f"w{i}" for i in range(40)]
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CHAT = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }} [SEP] {% endgeneration %}"
    "{% else %}{{ m.content }} [SEP] {% endif %}{% endfor %}"
)


def tokenizer(folder: Path, kind: str) -> None:
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if kind == "bert":
        raw.post_processor = processors.TemplateProcessing(
            "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
    extra = (
        {"cls_token": "[CLS]", "sep_token": "[SEP]"} if kind == "bert" else {"bos_token": "[CLS]", "eos_token": "[SEP]"}
    )
    fast = tf.PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", **extra)
    fast.model_max_length = 64
    fast.save_pretrained(folder)


def base(folder: Path, kind: str = "bert", layers: int = 2) -> Path:
    """A tiny model with its tokenizer in `folder`."""
    torch.manual_seed(0)
    size = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=layers, num_attention_heads=4, vocab_size=44)
    if kind == "bert":
        model = tf.BertModel(tf.BertConfig(**size, max_position_embeddings=64, initializer_range=0.2))
    else:
        config = tf.LlamaConfig(**size, num_key_value_heads=2, pad_token_id=0, bos_token_id=2, eos_token_id=3)
        model = tf.LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tokenizer(folder, kind)
    return folder


def rows(n: int = 60, seed: int = 0, labels: tuple[str, ...] = ("law", "sport", "food")) -> list[dict[str, str]]:
    """Texts whose label is told by one of their words."""
    r = random.Random(seed)
    out = []
    for _ in range(n):
        k = r.randrange(len(labels))
        words = [r.choice(WORDS[10:]) for _ in range(r.randrange(2, 9))]
        words.insert(r.randrange(len(words)), WORDS[k])
        out.append({"text": " ".join(words), "label": labels[k]})
    return out


def pairs(n: int = 40, seed: int = 0) -> list[dict[str, str]]:
    r = random.Random(seed)
    out = []
    for _ in range(n):
        words = [r.choice(WORDS) for _ in range(5)]
        out.append({"anchor": " ".join(words), "positive": " ".join(r.sample(words, 4))})
    return out


def jsonl(path: Path, data: list[dict]) -> Path:
    path.write_text("".join(json.dumps(r) + "\n" for r in data))
    return path


def tsv(path: Path, data: list[dict[str, str]], header: bool = False) -> Path:
    lines = ["label\ttext"] if header else []
    path.write_text("\n".join(lines + [f"{r['label']}\t{r['text']}" for r in data]) + "\n")
    return path
