"""A small model with words, a chat template and tenants, behind a server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import transformers as tf
from starlette.testclient import TestClient
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from commonweight.commons import Commons
from commonweight.host import Host
from commonweight.serve import Engine
from commonweight.serve.http import Settings, make

from .. import served

CHAT = "{% for m in messages %}<{{ m.role }}> {{ m.content }} {% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # noqa: E501


def tokenizer() -> Any:
    """Each word is a token; whatever is unknown is another."""
    words = ["<pad>", "<bos>", "<eos>", "<unk>", "<user>", "<assistant>", "<system>"]
    words += [f"w{i}" for i in range(served.VOCAB - len(words))]
    raw = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    raw.decoder = decoders.Metaspace(replacement="_")
    fast = tf.PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", unk_token="<unk>", bos_token="<bos>", eos_token="<eos>"
    )
    fast.chat_template = CHAT
    return fast


def host() -> Host:
    """Tenants a (LoRA) and b ((IA)3)."""
    found = Host(served.make())
    served.add(found, "a", "lora")
    served.add(found, "b", "ia3")
    return found


@contextmanager
def client(
    host: Host, store: Path | None = None, secret: str | None = None, words: Any = None, **settings: Any
) -> Iterator[TestClient]:
    """A client of a server of this host; `app.state.service` is what it stands on. words: another tokenizer."""
    shelf = None if store is None else Commons(store)
    with Engine(host, store=shelf, tokenizer=words or tokenizer(), max_requests=8, page_size=8) as engine:
        app = make(engine, Settings(name="org/tiny", **settings))
        headers = {} if secret is None else {"authorization": f"Bearer {secret}"}
        with TestClient(app, "http://localhost", raise_server_exceptions=False, headers=headers) as found:
            yield found


def events(text: str) -> list[Any]:
    """What a stream's `data:` lines say."""
    lines = [x.removeprefix("data: ") for x in text.splitlines() if x.startswith("data: ")]
    return [x if x == "[DONE]" else json.loads(x) for x in lines]
