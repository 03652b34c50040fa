"""The models that a recipe names: paths beside the recipe or here, hub names, adapters on a model."""

from __future__ import annotations

from pathlib import Path

from ...core import CommonweightError
from ..source import Source, open_source
from .types import Recipe

_FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]


class Models:
    """Opens each model once. lead: the folder of the base, else of the first model."""

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self.sources: dict[str, Source] = {}
        self.notices: list[str] = []
        self.lead = self.path(recipe.base or recipe.slices[0].inputs[0].model)

    def open(self, name: str) -> Source:
        if name not in self.sources:
            label = "base" if name == self._recipe.base else "model"
            self.sources[name] = open_source(self.path(name), label)
        return self.sources[name]

    def path(self, name: str) -> Path:
        """Beside the recipe, else from where we are, else on the hub (or in its cache)."""
        for path in (Path(self._recipe.folder) / name, Path(name).expanduser()):
            if path.exists():
                return path
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            return _hub(name)
        raise CommonweightError(f"{name}: no such file or folder, here or beside the recipe")


def _hub(name: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except Exception as e:
        why = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise CommonweightError(f"{name}: no such folder, and the hub does not give it: {why}") from e
