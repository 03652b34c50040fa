"""Serving: many tenants of one base model answer in one batch.

For a program, `Engine` is the whole of it for language models, `Encoder` for encoders; `commonweight serve` puts a
server before either (`http`). Not in scope: drafts by a second model (speculation) and tensor parallelism.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .readings import Classified, Embedding, Ranked
from .request import Answer, Logprob, Piece, Request

if TYPE_CHECKING:
    from .encoder import Encoder
    from .engine import Engine

__all__ = ["Answer", "Classified", "Embedding", "Encoder", "Engine", "Logprob", "Piece", "Ranked", "Request"]

_HOMES = {"Encoder": "encoder", "Engine": "engine"}


def __getattr__(name: str) -> Any:
    """Imports on first use: a request, and a key of a server, are made without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value
