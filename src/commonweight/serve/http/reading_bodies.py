"""The bodies of requests for vectors, classes and ranks, as OpenAI's, vLLM's and Jina's interfaces have them."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from .bodies import Body, Token

Texts = str | list[str] | list[Token] | list[list[Token]]


class Read(Body):
    """What they have in common."""

    model: str | None = Field(None, description="A tenant's name; `base` or the model's own name: the plain model.")
    truncate_prompt_tokens: int | None = Field(
        None, ge=-1, description="vLLM's: longer texts are cut to so many tokens; -1: to what the model reads."
    )
    task: str | None = Field(None, description="Of a tenant that goes by tasks, which.")
    user: Any = None
    request_id: Any = None
    priority: Any = None


class EmbeddingBody(Read):
    input: Texts
    encoding_format: Literal["float", "base64"] | None = None
    dimensions: int | None = Field(None, ge=1)
    normalize: bool | None = Field(None, description="vLLM's; vectors are of length 1 unless this is false.")


class ClassifyBody(Read):
    input: Texts


class RerankBody(Read):
    query: str
    documents: list[str | dict[str, Any]] = Field(min_length=1)
    top_n: int | None = Field(None, ge=0, description="0, and nothing said: all.")
    return_documents: bool | None = None


class ScoreBody(Read):
    """vLLM's: one text against several, or text by text."""

    text_1: str | list[str]
    text_2: str | list[str]
