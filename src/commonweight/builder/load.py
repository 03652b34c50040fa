"""Opening a folder that holds a shared model: by our own classes, so that no code of the folder runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core import CommonweightError
from . import adapter
from .remote import shared_class


def is_shared(folder: str | Path) -> bool:
    """Whether a folder of remote code, as `share.save` writes it, lies there. Cost: reading config.json."""
    return bool(_config(Path(folder)).get("sharing"))


def holds(model: str | Path) -> bool:
    """Whether a shared model lies there, in any form but the unrolled one and the ALBERT. Cost: reading two files."""
    return is_shared(model) or adapter.folder_of(Path(model)) is not None


def opened(auto: Any, model: str | Path, **options: Any) -> Any:
    """``auto.from_pretrained(model, ...)``, and of a folder with a shared model the shared model."""
    path = Path(model)
    if is_shared(path):
        return load(path, auto, **options)
    found = adapter.folder_of(path)
    if found is None:
        return auto.from_pretrained(str(model), **options)
    told = options.pop("output_loading_info", False)
    small = adapter.load(found, auto, **options)
    return (small, {"missing_keys": set(), "unexpected_keys": set()}) if told else small


def load(folder: str | Path, auto: Any = None, **options: Any) -> Any:
    """A shared model, each tensor once in memory. auto: an Auto class of transformers, as AutoModel, where the folder's
    own class is not the one that is wanted. options: as from_pretrained has them, such as dtype.

    Raises: CommonweightError for a folder that is none of ours.
    """
    import transformers as tf

    if (found := adapter.folder_of(Path(folder))) is not None:
        return adapter.load(found, auto or tf.AutoModelForCausalLM, **options)
    told = _config(Path(folder))
    if not told.get("sharing"):
        raise CommonweightError(f"{folder}: no shared model lies there; wanted a folder that share.save wrote")
    name = told.get("architectures", ["?"])[0].removeprefix("Shared")
    config = stock_config(told)
    kind = getattr(tf, name, None) if auto is None else auto._model_mapping[type(config)]
    if isinstance(kind, tuple):
        kind = kind[0]
    if kind is None:
        raise CommonweightError(f"{folder}: transformers {tf.__version__} has no class {name}")
    return shared_class(kind).from_pretrained(folder, config=config, **options)  # type: ignore[attr-defined]


def stock_config(told: dict[str, Any]) -> Any:
    """The config of the architecture that is shared."""
    import transformers as tf

    kept = {
        k: v for k, v in told.items() if k not in ("auto_map", "transformers_version", "architectures", "model_type")
    }
    return tf.AutoConfig.for_model(told["model_type"].removeprefix("shared_"), **kept)


def config_of(model: str | Path) -> Any:
    """AutoConfig's; of a folder with a shared model that of the unrolled one, without running, or asking for, the code
    in it."""
    import transformers as tf

    path = Path(model)
    told = _config(path)
    if told.get("sharing"):
        config = stock_config(told)
        config.architectures = [n.removeprefix("Shared") for n in told.get("architectures") or []]
        return config
    if (found := adapter.folder_of(path)) is None:
        return tf.AutoConfig.from_pretrained(str(model))
    config = tf.AutoConfig.from_pretrained(adapter.base_of(found))
    config.num_hidden_layers = sum(last - first for first, last in adapter.replication(found))
    return config


def speaking(model: str | Path) -> Any:
    """The Auto class of a language model: AutoModelForCausalLM, or the one of those that read images or sounds too."""
    import transformers as tf

    more = tf.AutoModelForImageTextToText, tf.AutoModelForMultimodalLM
    try:
        kind = type(config_of(model))
    except (OSError, ValueError, KeyError):
        return tf.AutoModelForCausalLM  # which says what is missing there
    known = (a for a in (tf.AutoModelForCausalLM, *more) if kind in a._model_mapping)
    return next(known, tf.AutoModelForCausalLM)


def reading(model: str | Path) -> Any:
    """The Auto class of a model that reads: AutoModel, or AutoModelForTextEncoding for a folder of an encoder alone (a
    `T5EncoderModel`), of which AutoModel would make the whole with a decoder at random."""
    import transformers as tf

    alone = tf.AutoModelForTextEncoding
    try:
        config = config_of(model)
        name = getattr(alone._model_mapping.get(type(config), None), "__name__", "")
    except (OSError, ValueError, KeyError):
        return tf.AutoModel  # which says what is missing there
    return alone if name.endswith("EncoderModel") and name in (config.architectures or ()) else tf.AutoModel


def tokenizer(where: str | Path, **options: Any) -> Any:
    """AutoTokenizer's; of a shared model's folder without running, or asking for, the code in it.

    Raises: CommonweightError for one without words: where its files are missing, transformers makes it of special
    tokens alone for some models, and every word would be an unknown one.
    """
    from transformers import AutoTokenizer

    told = _config(Path(where))
    if told.get("sharing"):
        options["config"] = stock_config(told)
    found: Any = AutoTokenizer.from_pretrained(str(where), **options)
    if len(found) <= len(found.all_special_tokens):
        raise CommonweightError(
            f"{where}: the tokenizer there knows {len(found)} special tokens and no words; its files "
            "(tokenizer.json, or vocab.txt and the like) are missing: save it there with tokenizer.save_pretrained"
        )
    return found


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
