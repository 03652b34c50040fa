"""Serving: many tenants of one base model answer in one batch.

`Engine` is the whole of it for a program; `commonweight serve` puts a server before it (`http`). Not in scope: drafts
by a second model (speculation) and tensor parallelism.
"""

from typing import TYPE_CHECKING, Any

from .request import Answer, Logprob, Piece, Request

if TYPE_CHECKING:
    from .engine import Engine

__all__ = ["Answer", "Engine", "Logprob", "Piece", "Request"]


def __getattr__(name: str) -> Any:
    """Imports on first use: a request, and a key of a server, are made without torch."""
    if name != "Engine":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from .engine import Engine

    globals()[name] = Engine
    return Engine
