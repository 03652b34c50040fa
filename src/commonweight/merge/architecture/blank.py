"""The model that a config describes, on the meta device: no weight is read, nothing is downloaded, no code of a
model's own runs."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import torch
from torch import nn

from ...core import CommonweightError

CONFIG = "config.json"
_NOT_BUILT = ("quantization_config", "auto_map")  # what was quantised is merged in full; own code is never run


class NoModel(CommonweightError):
    """A config of which transformers makes no model here: of another library, with code of its own, damaged."""


class Loaded(NamedTuple):
    """What transformers says on loading: names of the model, but for `unexpected`, which are the file's as renamed."""

    missing: frozenset[str]
    unexpected: frozenset[str]
    mismatched: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.missing or self.unexpected or self.mismatched)


def blank(config: Mapping[str, Any]) -> Any:
    """The first architecture that the config names, else the body of its model_type, as a transformers model on meta.

    Raises: NoModel. Cost: half a second and 150 MB of Python objects for 80 layers.
    """
    _typed(config)
    with _quiet(), torch.random.fork_rng(devices=[]):
        try:
            kind, read = _kind(config)
            with torch.device("meta"):
                return kind(read)
        except Exception as e:  # whatever a model's own constructor raises
            raise NoModel(_why(e)) from e


def loaded(config: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> Loaded:
    """What a model of this config lacks, does not use, or wants in another shape, of tensors in a file of these names
    and shapes; as `from_pretrained` tells it, which renames and joins tensors of older files.

    Raises: NoModel.
    """
    _typed(config)
    with _quiet(), torch.random.fork_rng(devices=[]):
        try:
            kind, read = _kind(config)
            given = {n: torch.empty(s, device="meta") for n, s in shapes.items()}
            how = {"device_map": {"": "meta"}, "output_loading_info": True, "ignore_mismatched_sizes": True}
            _, told = kind.from_pretrained(None, config=read, state_dict=given, **how)
        except Exception as e:
            raise NoModel(_why(e)) from e
    mismatched = frozenset(n if isinstance(n, str) else n[0] for n in told["mismatched_keys"])
    return Loaded(frozenset(told["missing_keys"]), frozenset(told["unexpected_keys"]), mismatched)


def known(config: Mapping[str, Any]) -> Any:
    """The config as its own class reads it, with what that derives. Raises: NoModel."""
    _typed(config)
    with _quiet():
        try:
            return _read(config)
        except Exception as e:
            raise NoModel(_why(e)) from e


def _typed(config: Mapping[str, Any]) -> None:
    """Before transformers is imported, which takes seconds."""
    if not config.get("model_type"):
        raise NoModel(f"{CONFIG} has no model_type")


def _kind(config: Mapping[str, Any]) -> tuple[Any, Any]:
    """(class of the model, its config)."""
    import transformers as tf

    read = _read(config)
    named = [getattr(tf, str(n), None) for n in config.get("architectures") or []]
    kind = next((k for k in named if isinstance(k, type) and issubclass(k, tf.PreTrainedModel)), None)
    if kind is None or kind.config_class not in (None, type(read)):
        kind = tf.AutoModel._model_mapping[type(read)]
    return kind, read


def _read(config: Mapping[str, Any]) -> Any:
    import transformers as tf

    said = {k: v for k, v in config.items() if k not in _NOT_BUILT}
    with TemporaryDirectory() as folder:
        (Path(folder) / CONFIG).write_text(json.dumps(said), encoding="utf-8")
        return tf.AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)


def _why(e: BaseException) -> str:
    text = (str(e).strip() or type(e).__name__).splitlines()[0]
    return f"{CONFIG} makes no model here ({text})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars and notices of loading, which are about a model that nobody loads."""
    from transformers.utils import logging

    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(50)  # critical
    logging.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def numbered(model: nn.Module) -> dict[str, int]:
    """Lists of modules, outermost ones: name -> how many are in it."""
    found: dict[str, set[int]] = {}
    for name, _ in model.named_modules():
        parts = name.split(".")
        at = next((i for i, p in enumerate(parts) if p.isdigit()), None)
        if at is not None:
            found.setdefault(".".join(parts[:at]), set()).add(int(parts[at]))
    return {n: len(k) for n, k in found.items() if k == set(range(len(k)))}
