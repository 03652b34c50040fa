"""The base of an adapter, opened: a language model, an encoder, or a part of a diffusion pipeline."""

from __future__ import annotations

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from ..core import CommonweightError, first_line

TASKS = "lm, classify or embed"


def open_base(model: str, task: str | None, pool: str | None = None) -> Any:
    """A host. task: without one, classify where a head is asked for, lm for a config of a causal model, else embed; of
    a model that reads images or sounds alone, or beside texts, the class that its config names. pool: what the features
    of a head are, "" for the default; None: no head is asked for.

    A folder that diffusers wrote (``_class_name`` in its config.json) is opened by diffusers.
    """
    from ..adapt import open_host
    from ..core.readable import CONFIG_BYTES, read_object
    from .progress import quiet

    quiet()

    path = Path(model) / "config.json"
    config = read_object(path, CONFIG_BYTES) if path.is_file() else {}
    if isinstance(kind := config.get("_class_name"), str):
        return _diffusers(model, kind)
    if task is None:
        named = config.get("architectures")
        ends = ["ForCausalLM", "LMHeadModel"]
        if not config.get("is_encoder_decoder"):
            ends.append("ForConditionalGeneration")
        causal = not named or any(str(n).endswith(tuple(ends)) for n in named)
        if pool is None and not causal and (kind := _sensing(named)) is not None:
            return _transformers(model, kind)
        task = "classify" if pool is not None else "lm" if causal else "embed"
    return open_host(model, task, pool=pool or None)


def _sensing(named: Any) -> Any:
    """The class of transformers that a config names, where it reads more than texts; else None."""
    import transformers as tf

    kind = getattr(tf, str(named[0]), None) if isinstance(named, list) and named else None
    asked = () if kind is None else inspect.signature(kind.forward).parameters
    return kind if {"pixel_values", "input_values", "input_features"} & {*asked} else None


def _transformers(model: str, kind: Any) -> Any:
    from ..host import Host

    try:
        return Host(kind.from_pretrained(model).eval())
    except (OSError, ValueError, SafetensorError) as e:
        raise CommonweightError(f"model {model!r} cannot be read as {kind.__name__}: {first_line(e)}") from e


def _diffusers(model: str, kind: str) -> Any:
    from ..host import Host

    try:
        diffusers = import_module("diffusers")
    except ImportError as e:
        raise CommonweightError(
            f"model {model!r} is a {kind} of diffusers; pip install 'commonweight[diffusion]'"
        ) from e
    found = getattr(diffusers, kind, None)
    if found is None or not hasattr(found, "from_pretrained"):
        raise CommonweightError(f"model {model!r}: diffusers {diffusers.__version__} has no model {kind}")
    return Host(found.from_pretrained(model))
