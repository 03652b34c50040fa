"""The sites of a model whose weights are nowhere: from its config.json, or from a list of shapes by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ..core import CommonweightError, Site, unknown
from .experts import discover

# Dimensions as in the models' own config.json.
KNOWN: dict[str, tuple[str, dict[str, int]]] = {
    "llama-3.1-8b": (
        "llama",
        {
            "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
            "num_key_value_heads": 8, "vocab_size": 128256,
        },
    ),
    "minilm-l6": (
        "bert",
        {
            "hidden_size": 384, "intermediate_size": 1536, "num_hidden_layers": 6, "num_attention_heads": 12,
            "vocab_size": 30522,
        },
    ),
}  # fmt: skip


def sites_of(model: str | Path, config: Any = None) -> list[Site]:
    """The sites that a host of this model would have by default.

    model: a folder with a config.json, or a name in KNOWN. config: in the place of the folder's. The model is made on
    the meta device: no weight is read or allocated. Cost: a second or two, mostly imports.
    Raises: CommonweightError for a folder or name that is neither, and for an architecture that cannot be made.
    """
    from transformers import AutoConfig, AutoModel

    path = Path(model)
    if config is not None:
        pass
    elif (path / "config.json").is_file():
        try:
            config = AutoConfig.from_pretrained(path)
        except (ValueError, OSError, KeyError) as e:
            raise CommonweightError(f"{path}: config.json cannot be read: {str(e).splitlines()[0]}") from e
    elif path.exists():
        raise CommonweightError(f"{path}: no config.json there; wanted a model's folder, or one of {', '.join(KNOWN)}")
    elif str(model) in KNOWN:
        kind, sizes = KNOWN[str(model)]
        config = AutoConfig.for_model(kind, **sizes)
    else:
        raise unknown("model", str(model), KNOWN, "(or give a folder with a config.json)")
    try:
        with torch.device("meta"):
            made = AutoModel.from_config(config)
    except ValueError as e:
        raise CommonweightError(f"{model}: no model can be made of its config: {str(e).splitlines()[0]}") from e
    return discover(made)[2]
