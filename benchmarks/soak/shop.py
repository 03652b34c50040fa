"""What a soak is about: a small model, tenants that each say a word of their own, and what each of them answers alone.

The base never says a canary: its head lowers them by a part of the hidden state that no layer writes to. Each version
of a tenant is trained to say its canary, and has another one in its prompts. So a canary in an answer says from where
it came.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers as tf
from tokenizers import Tokenizer, models, pre_tokenizers

import commonweight as cw

WORDS, MOST, PROMPTS = 64, 24, 12  # plain words; tokens of an answer; prompts of a tenant
SCALE, RATE = 20.0, 0.003  # of the base's weights, so that answers depend on their prompts; of training
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<system>")
CHAT = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501
METHODS = {
    "ann": "lora", "ben": "mos", "cat": "dora", "dan": "loreft", "eve": "vb-lora", "fay": "bottleneck", "gus": "ia3",
    "hal": "lora-xs",
}  # fmt: skip
OPTIONS: dict[str, dict[str, Any]] = {
    "lora": {"rank": 4}, "mos": {"rank": 4, "shards": 2}, "dora": {"rank": 4}, "vb-lora": {"num_vectors": 32},
    "bottleneck": {"size": 4}, "lora-xs": {"rank": 8},
}  # fmt: skip
BAD = "ill"  # the version of each tenant that is finite, and whose answers are not


@dataclass(frozen=True)
class Told:
    """What a version answers to a prompt by plain `generate`. sure: of each token, whether it was far enough ahead of
    the next one that rounding cannot change it."""

    tokens: tuple[int, ...]
    sure: tuple[bool, ...]


class Shop:
    """names: of the tenants; versions: of each, 1 and on. folder: takes a file of each version."""

    def __init__(self, folder: Path, names: Sequence[str], versions: int, steps: int = 20):
        torch.manual_seed(3)
        self.names, self.versions = tuple(names), versions
        said = [canary(n, v) for n in names for v in range(1, versions + 1)]
        words = [*SPECIAL, *(f"w{i}" for i in range(WORDS)), *said, *(secret(n) for n in names)]
        self.id = {w: i for i, w in enumerate(words)}
        self.canaries = {i for w, i in self.id.items() if "canary" in w}
        self.words, self.tokenizer = words, _tokenizer(words)
        self.base = _base(len(words), sorted(self.canaries))
        self.alone = cw.Host(copy.deepcopy(self.base))
        self.alone.model.generation_config.eos_token_id = None  # type: ignore[union-attr]
        self.files: dict[tuple[str, int | str], Path] = {}
        self._known: dict[Any, Told] = {}
        self._lock = threading.Lock()
        for name in names:
            for version in range(1, versions + 1):
                self._make(folder, name, version, steps)

    def _make(self, folder: Path, name: str, version: int, steps: int) -> None:
        method, known = METHODS[name], f"{name}.{version}"
        tenant = self.alone.add(known, method, seed=version, **OPTIONS.get(method, {}))
        _train(self.alone, known, self, self.id[canary(name, version)], steps)
        self.files[name, version] = self.alone.save(known, folder / f"{known}.safetensors")
        if version > 1:
            return
        with torch.no_grad():
            first = next(iter(tenant.parameters()))
            kept = first.clone()
            first.fill_(3e38)
            self.files[name, BAD] = self.alone.save(known, folder / f"{name}.{BAD}.safetensors")
            first.copy_(kept)

    def prompt(self, name: str | None, i: int) -> list[int]:
        """One of its prompts, with its secret in it; prompts of one tenant share beginnings."""
        own = [] if name is None else [self.id[secret(name)]]
        length = 2 + 5 * (i % 4)
        body = [len(SPECIAL) + (i // 4 * 7 + 5 * j + 3) % WORDS for j in range(length)]
        return [1, *own, *body, *own]

    def told(self, name: str | None, version: int | None, prompt: Sequence[int]) -> Told:
        key = (name, version, tuple(prompt))
        with self._lock:
            if key not in self._known:
                self._known[key] = self._ask(None if name is None else f"{name}.{version}", prompt)
            return self._known[key]

    @torch.no_grad()
    def _ask(self, known: str | None, prompt: Sequence[int]) -> Told:
        ids = torch.tensor([list(prompt)])
        with self.alone.route(known):
            out: Any = self.alone.model.generate(  # type: ignore[operator]
                input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=MOST, do_sample=False,
                pad_token_id=0, return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        best = [x[0].topk(2).values for x in out.logits]
        return Told(tuple(out.sequences[0, len(prompt) :].tolist()), tuple(float(b[0] - b[1]) > 1e-3 for b in best))

    def chat(self, prompt: Sequence[int]) -> list[int]:
        """The tokens of a chat whose one message has the words of a prompt, but for its first token."""
        said = [{"role": "user", "content": " ".join(self.words[t] for t in prompt[1:])}]
        text = self.tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def text(self, tokens: Sequence[int]) -> str:
        return self.tokenizer.decode(list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def speaking(self) -> float:
        """The share of versions that say their canary at all, so that a leak would show."""
        pairs = [(n, v) for n in self.names for v in range(1, self.versions + 1)]
        say = [
            any(self.id[canary(n, v)] in self.told(n, v, self.prompt(n, i)).tokens for i in range(PROMPTS))
            for n, v in pairs
        ]
        return sum(say) / len(say)


def canary(name: str, version: int) -> str:
    return f"canary-{name}-{version}"


def secret(name: str) -> str:
    return f"canary-of-{name}"


def _tokenizer(words: list[str]) -> Any:
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )
    fast.chat_template = CHAT
    return fast


@torch.no_grad()
def _base(vocabulary: int, canaries: list[int]) -> Any:
    config = tf.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=vocabulary, max_position_embeddings=256, eos_token_id=2, bos_token_id=1, pad_token_id=0,
        tie_word_embeddings=False,
    )  # fmt: skip
    model: Any = tf.LlamaForCausalLM(config).eval()
    for p in model.parameters():
        p.mul_(SCALE) if p.dim() > 1 else p.add_(0.1 * torch.randn_like(p))
    model.model.embed_tokens.weight[:, 0] = 1.0
    for layer in model.model.layers:
        layer.self_attn.o_proj.weight[0] = layer.mlp.down_proj.weight[0] = 0.0
    model.lm_head.weight[:, 0] = 0.0
    model.lm_head.weight[canaries, 0] = -80.0
    return model


def _train(host: cw.Host, name: str, shop: Shop, says: int, steps: int) -> None:
    g = torch.Generator().manual_seed(says)
    optimizer = torch.optim.Adam(host[name].parameters(), RATE)
    for _ in range(steps):
        ids = torch.randint(len(SPECIAL), len(SPECIAL) + WORDS, (8, 12), generator=g)
        with host.route(name):
            logits = host.model(input_ids=ids).logits
        foreign = logits[..., sorted(shop.canaries - {says})]
        best = logits[..., : len(SPECIAL) + WORDS].max(-1).values.detach()
        own = (logits[..., says] - best).square().mean()  # as likely as what it would say else
        loss = own + torch.relu(foreign - best[..., None] + 5).square().sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
