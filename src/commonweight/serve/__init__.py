"""Serving: many tenants of one base model answer in one batch.

`Engine` is the whole of it for a program; `commonweight serve` puts a server before it. Not in scope: drafts by a
second model (speculation) and tensor parallelism.
"""

from .engine import Engine
from .request import Answer, Logprob, Piece, Request

__all__ = ["Answer", "Engine", "Logprob", "Piece", "Request"]
