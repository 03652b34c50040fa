"""The models that a recipe names: paths beside the recipe or here, hub names, adapters on a model."""

from __future__ import annotations

from pathlib import Path

import torch

from ...core import CommonweightError
from ..adapted import Adapted
from ..opened import is_tenant, stored
from ..quantised import Quantised
from ..source import Source, config_of, open_source
from ..tenanted import Tenanted
from .types import Recipe

_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
_HEAD, _EMBEDDING = "lm_head.weight", ("embed_tokens.weight", "wte.weight", "word_embeddings.weight")


class Models:
    """Opens each model once. lead: the folder of the base, else of the first model.

    `MODEL+ADAPTER` is a model with a LoRA adapter, or with a tenant (its file, or STORE:TENANT); an adapter or a tenant
    alone stands on the recipe's base.
    """

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self.sources: dict[str, Source] = {}
        self.notices: list[str] = []
        self.lead = self.path((recipe.base or recipe.slices[0].inputs[0].model).split("+")[0])
        if recipe.vocabulary is not None:
            self._vocabulary(recipe.vocabulary.source)

    def open(self, name: str) -> Source:
        if name not in self.sources:
            self.sources[name] = self._open(name)
        return self.sources[name]

    def path(self, name: str) -> Path:
        """Beside the recipe, else from where we are, else on the hub (or in its cache)."""
        for path in (Path(self._recipe.folder) / name, Path(name).expanduser()):
            if path.exists():
                return path
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return _hub(name)
        raise CommonweightError(f"{name}: no such file or folder, here or beside the recipe")

    def _open(self, name: str) -> Source:
        model, plus, adapter = name.partition("+")
        if plus:
            return self._on(name, self.open(model), adapter)
        base = self._recipe.base
        if self._tenant(name) is not None:
            if base is None or base == name:
                raise CommonweightError(f"{name}: a tenant; write MODEL+{name}, or give base")
            return self._on(name, self.open(base), name)
        path = self.path(name)
        if (path / "adapter_config.json").is_file():
            if base is None or base == name:
                raise CommonweightError(f"{name}: an adapter; write MODEL+{name}, or give base")
            return Adapted(f"model ({name})", self.open(base), path)
        source = open_source(path, "base" if name == base else "model")
        if isinstance(source, Quantised):
            self.notices.append(f"{name}: {source.how}")
        return _untied(source, name) if config_of(path).get("tie_word_embeddings") else source

    def _on(self, name: str, base: Source, adapter: str) -> Source:
        if (tenant := self._tenant(adapter)) is None:
            return Adapted(f"model ({name})", base, self.path(adapter))
        found = Tenanted(f"model ({name})", base, tenant)
        self.notices += found.notices
        return found

    def _tenant(self, name: str) -> str | Path | None:
        """A tenant's file, or "STORE:TENANT"; a folder or a file of weights is none."""
        for near in (Path(self._recipe.folder) / name, Path(name).expanduser()):
            if stored(near) is not None or is_tenant(near):
                return near
        return None

    def _vocabulary(self, source: str) -> None:
        vocabulary = self._recipe.vocabulary
        assert vocabulary is not None
        if source == "union" or vocabulary.tokens or vocabulary.multiple != 1:
            raise CommonweightError("tokenizer: only `base` or a model is read: vocabularies are not joined")
        if source != "base":
            self.lead = self.path(source)


def _untied(source: Source, name: str) -> Source:
    """Without the head that the model's config ties to its embedding: it is written once."""
    embedding = next((n for n in source.shapes if n.endswith(_EMBEDDING)), None)
    if _HEAD not in source.shapes or embedding is None:
        return source
    if source.shapes[_HEAD] != source.shapes[embedding] or not _equal(source, _HEAD, embedding):
        raise CommonweightError(
            f"{_HEAD}: {name} has tie_word_embeddings, but its head is not its {embedding}; set it to false"
        )
    source.shapes = {n: s for n, s in source.shapes.items() if n != _HEAD}
    return source


def _equal(source: Source, a: str, b: str) -> bool:
    rows, *rest = source.shapes[a]
    width, step = int(torch.Size(rest).numel()), 1 << 20
    return all(
        torch.equal(source.flat(a, i, min(step, rows * width - i)), source.flat(b, i, min(step, rows * width - i)))
        for i in range(0, rows * width, step)
    )


def _hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as e:
        why = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise CommonweightError(f"{name}: no such folder, and the hub does not give it: {why}") from e
