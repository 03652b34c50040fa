"""The base of an adapter, opened: a language model, an encoder, or a part of a diffusion pipeline."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from ..core import CommonweightError

TASKS = "lm, classify or embed"


def open_base(model: str, task: str | None, labels: bool = False) -> Any:
    """A host. task: without one, classify where a head is asked for, lm for a config of a causal model, else embed.

    A folder that diffusers wrote (``_class_name`` in its config.json) is opened by diffusers.
    """
    from ..adapt import open_host
    from ..core.readable import CONFIG_BYTES, read_object

    path = Path(model) / "config.json"
    config = read_object(path, CONFIG_BYTES) if path.is_file() else {}
    if isinstance(kind := config.get("_class_name"), str):
        return _diffusers(model, kind)
    if task is None:
        named = config.get("architectures")
        causal = not named or any(str(n).endswith(("ForCausalLM", "LMHeadModel")) for n in named)
        task = "classify" if labels else "lm" if causal else "embed"
    return open_host(model, task, pool="transformers" if labels else None)


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
