"""Opening a folder that holds a shared model: by our own classes, so that no code of the folder runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..core import CommonweightError
from .remote import shared_class


def is_shared(folder: str | Path) -> bool:
    """Whether a folder of remote code, as `share.save` writes it, lies there. Cost: reading config.json."""
    return bool(_config(Path(folder)).get("sharing"))


def load(folder: str | Path, auto: Any = None, **options: Any) -> Any:
    """A shared model, each tensor once in memory. auto: an Auto class of transformers, as AutoModel, where the folder's
    own class is not the one that is wanted. options: as from_pretrained has them, such as dtype.

    Raises: CommonweightError for a folder that is none of ours.
    """
    import transformers as tf

    told = _config(Path(folder))
    if not told.get("sharing"):
        raise CommonweightError(f"{folder}: no shared model lies there; wanted a folder that share.save wrote")
    for key in ("auto_map", "transformers_version"):
        told.pop(key, None)
    name = told.pop("architectures", ["?"])[0].removeprefix("Shared")
    config = tf.AutoConfig.for_model(told.pop("model_type").removeprefix("shared_"), **told)
    kind = getattr(tf, name, None) if auto is None else auto._model_mapping[type(config)]
    if isinstance(kind, tuple):
        kind = kind[0]
    if kind is None:
        raise CommonweightError(f"{folder}: transformers {tf.__version__} has no class {name}")
    return shared_class(kind).from_pretrained(folder, config=config, **options)  # type: ignore[attr-defined]


def _config(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
