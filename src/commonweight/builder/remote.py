"""A folder of transformers with its own short code: any architecture, every tensor once."""

from __future__ import annotations

import json
import os
from functools import lru_cache
from pathlib import Path
from typing import Any

from ..core import CommonweightError
from .shared import Shared


class _Forms(dict[str, type]):
    """The classes of forms by name, imported when the first is asked for: most models have none."""

    def __missing__(self, name: str) -> type:
        from .kinds import KINDS

        return KINDS[name]


class Built(Shared):
    """A shared model in memory: transformers' own class, with `Shared` before it."""

    kinds = _Forms()

    def save_pretrained(self, folder: str | os.PathLike[str], **options: Any) -> None:
        """As a folder of remote code, every tensor once: also where a Trainer saves."""
        write(self, Path(folder), **options)


@lru_cache(maxsize=64)
def shared_class(kind: type) -> type:
    """`Built` before a class of transformers."""
    return type(f"Shared{kind.__name__}", (Built, kind), {"__module__": __name__})


def write(model: Any, folder: Path, **options: Any) -> None:
    """Loads with ``AutoModel...from_pretrained(folder, trust_remote_code=True)``; without the flag it is refused."""
    from . import code

    config_class, base, head, autos = classes(model)
    name = f"modeling_{code.shared_type(model)}"
    # names as modules have them: for a model_type of its own transformers converts none, such as experts in one tensor
    super(Built, model).save_pretrained(folder, **{"save_original_format": False, **options})  # type: ignore[misc]
    (folder / f"{name}.py").write_text(code.of(model, config_class, base, head, "Shared"), encoding="utf-8")
    path = folder / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config["model_type"] = code.shared_type(model)
    config["architectures"] = [f"Shared{head or base}"]
    config["auto_map"] = {
        "AutoConfig": f"{name}.Shared{config_class}", "AutoModel": f"{name}.Shared{base}",
        **{a: f"{name}.Shared{head}" for a in autos},
    }  # fmt: skip
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def classes(model: Any) -> tuple[str, str, str | None, list[str]]:
    """(config class, base class, class with a head or None, the Auto classes that make it)."""
    import transformers as tf

    stock = plain_class(model)
    prefix = stock.base_model_prefix
    inner = getattr(model, prefix, None) if prefix else None
    base = stock if inner is None else plain_class(inner)
    for kind in (base, stock):
        if getattr(tf, kind.__name__, None) is not kind:
            raise CommonweightError(
                f"{kind.__name__} is not a class of transformers, so that remote code cannot name it; save unrolled"
            )
    head = None if inner is None else stock
    config = type(model.config).__name__
    return config, base.__name__, head and head.__name__, _autos(head)


def plain_class(model: Any) -> type:
    """The class of transformers under `Shared`."""
    return next(k for k in type(model).__mro__ if k.__module__.startswith("transformers."))


def _autos(head: type | None) -> list[str]:
    """Names of the Auto classes whose mapping has this class."""
    from transformers.models.auto import modeling_auto

    out = []
    for name in dir(modeling_auto):
        mapping = getattr(getattr(modeling_auto, name), "_model_mapping", None)
        names = getattr(mapping, "_model_mapping", {})
        if (
            head is not None
            and name.startswith("AutoModelFor")
            and any(head.__name__ == n or (isinstance(n, tuple) and head.__name__ in n) for n in names.values())
        ):
            out.append(name)
    return out
