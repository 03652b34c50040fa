"""What a request says becomes token ids; what a model's folder says about its texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..builder.load import config_of, opened, speaking, tokenizer
from ..core import CommonweightError
from ..host import Host
from .request import Request


def hosted(model: Host | nn.Module | str | Path) -> tuple[Host, bool, str]:
    """(its host, whether that was made here, the model's folder or name)."""
    if isinstance(model, Host):
        return model, False, str(getattr(model.model, "name_or_path", ""))
    if isinstance(model, nn.Module):
        return Host(model), True, str(getattr(model, "name_or_path", ""))
    return Host(loaded(str(model))), True, str(model)


def loaded(model: str, dtype: str = "auto", device: str = "cpu") -> nn.Module:
    """A language model from its folder or the hub. dtype: "auto" is the one that its files have."""
    try:
        both = getattr(config_of(model), "is_encoder_decoder", False)
        found = None if both else opened(speaking(model), model, dtype=dtype)
    except (OSError, ValueError) as e:
        raise CommonweightError(f"{model}: no language model can be loaded there: {str(e).splitlines()[0]}") from e
    if found is None:
        raise CommonweightError(
            f"{model}: an encoder and a decoder, which continuous batching does not take; use generate, or have its "
            "encoder read (--task embed)"
        )
    found.eval().to(torch.device(device))  # type: ignore[arg-type]
    return found


def tokenizer_of(model: Any, name: str) -> Any:
    """The one beside the model's files, or None where there is none."""
    if not name:
        return None
    try:
        return tokenizer(name, local_files_only=Path(name).exists())
    except (OSError, ValueError, KeyError):
        return None


def length_of(model: Any) -> int | None:
    """The longest text that the model reads, where its config says, and without scaling its positions (`scaled`)."""
    told = getattr(model.config.get_text_config(), "max_position_embeddings", None), scaled(model)
    return min((int(n) for n in told if n), default=None)


def scaled(model: Any) -> int | None:
    """The length up to which a model reads positions as they are that scales all of them where the longest text of a
    batch is longer (longrope, as in Phi-3 for 128k; `dynamic` begins at max_position_embeddings). None: it has no such.

    A short text would be answered otherwise beside a long one, and keys that lie in a cache have the scale of before.
    """
    config = model.config.get_text_config()
    told = getattr(config, "rope_parameters", None) or {}
    kinds = [told, *(v for v in told.values() if isinstance(v, Mapping))]  # some have one for each kind of layer
    found = [k.get("original_max_position_embeddings") for k in kinds if k.get("rope_type") == "longrope"]
    return min((int(n) for n in found if n), default=None)


def tokens(request: Request, tokenizer: Any, vocabulary: int) -> list[int]:
    """A prompt's token ids. Raises: CommonweightError for ids outside the vocabulary, text without a tokenizer, and
    messages without a template."""
    prompt = request.prompt
    if isinstance(prompt, str):
        return _known(_read(_needed(tokenizer, "text"), prompt), tokenizer, vocabulary)
    if not isinstance(prompt, Sequence):
        more = ", as tolist() of one row gives them" if hasattr(prompt, "tolist") else ""
        raise CommonweightError(f"prompt is a {type(prompt).__name__}; wanted text, token ids{more}, or messages")
    if prompt and isinstance(prompt[0], Mapping):
        return _known(_chat(prompt, request, _needed(tokenizer, "messages")), tokenizer, vocabulary)  # type: ignore[arg-type]
    for token in prompt:
        if not isinstance(token, int | np.integer) or isinstance(token, bool) or not 0 <= token < vocabulary:
            raise CommonweightError(f"prompt has the token {token!r}; wanted whole numbers from 0 to {vocabulary - 1}")
    return [int(token) for token in prompt]  # type: ignore[arg-type]


def _known(tokens: list[int], tokenizer: Any, vocabulary: int) -> list[int]:
    """Raises: CommonweightError for a token that the tokenizer has and the model has not."""
    if tokens and (most := max(tokens)) >= vocabulary:
        raise CommonweightError(
            f"the tokenizer makes {most} of {tokenizer.convert_ids_to_tokens(most)!r}, and the model has {vocabulary} "
            "entries; load a tenant that brings its rows, or make room with host.resize_vocabulary(len(tokenizer))"
        )
    return tokens


def _needed(tokenizer: Any, what: str) -> Any:
    if tokenizer is None:
        raise CommonweightError(
            f"the prompt is {what}, but no tokenizer lies beside the model; give Engine(tokenizer=)"
        )
    return tokenizer


def _chat(messages: Sequence[Mapping[str, Any]], request: Request, tokenizer: Any) -> list[int]:
    if not getattr(tokenizer, "chat_template", None):
        raise CommonweightError("the prompt is messages, but the tokenizer has no chat template; give text instead")
    for i, m in enumerate(messages):
        if not isinstance(m, Mapping) or not isinstance(m.get("role"), str):
            raise CommonweightError(f"message {i} is {m!r}; wanted an object with a role and its content")
    more = {} if request.tools is None else {"tools": list(request.tools)}
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True, **more)
    except Exception as e:  # a template is a program of the model's authors
        raise CommonweightError(f"the chat template refuses these messages: {e}") from e
    return _read(tokenizer, text, add_special_tokens=False)


def _read(tokenizer: Any, text: str, **how: Any) -> list[int]:
    """Raises: CommonweightError for halves of characters, which no tokenizer takes."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as e:
        raise CommonweightError(f"prompt has half a surrogate pair at character {e.start}; wanted text") from e
    return list(tokenizer(text, **how)["input_ids"])
