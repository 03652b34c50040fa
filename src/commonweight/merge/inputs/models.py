"""The models that a recipe names: paths beside the recipe or here, hub names, adapters on a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ...core import CommonweightError
from ...formats.peft.folder import CONFIG, TENSORS
from ..schema.types import Recipe, Vocabulary
from ..sources.adapted import Adapted
from ..sources.heads import EMBEDDINGS, HEAD, settle, tied
from ..sources.model import open_source
from ..sources.opened import is_tenant, stored
from ..sources.quantised import Quantised
from ..sources.source import Read, Source, config_of
from ..sources.tenanted import Tenanted
from ..vocabulary import tokens as vocabulary
from ..vocabulary.padded import Padded
from ..vocabulary.reading import alike, tokens_of, vocabulary_file

FILES = ["*.safetensors", "*.json", "*.model", "*.txt", "*.jinja"]
_FACTOR = re.compile(r"(^|\.)lora_(embedding_)?[AB](\.|$)")


class Models:
    """Opens each model once. lead: the folder of the base, else of the first model. hub: names that were found there.

    `MODEL+ADAPTER` is a model with a LoRA adapter, or with a tenant (its file, or STORE:TENANT); an adapter or a tenant
    alone stands on the recipe's base. A file or folder with a + in its own name is what it is.
    """

    def __init__(self, recipe: Recipe):
        self._recipe = recipe
        self.sources: dict[str, Source] = {}
        self.notices: list[str] = []
        self.hub: list[str] = []
        self._first = self._parts(recipe.base or recipe.slices[0].inputs[0].model)[0]
        self.lead = self.path(self._first)
        self.words = self.lead  # whose tokenizer is taken
        self.numbers: tuple[dict[str, int], dict[str, int]] | None = None  # the lead's tokens, and the result's
        self.vocabulary: vocabulary.Vocabulary | None = None
        self.untied = False  # whether heads are written of models that have none of their own
        self._raw: dict[str, Source] = {}
        self._standing: dict[str, bool] = {}
        self._dtypes: dict[int, Mapping[str, torch.dtype]] = {}
        self._tables: dict[str, dict[int, list[tuple[str, int]]]] = {}
        if recipe.vocabulary is not None:
            self._join(recipe.vocabulary)
        users = dict.fromkeys(x.model for part in recipe.slices for x in part.inputs)
        self._settle([*([recipe.base] if recipe.base else []), *(u for u in users if u != recipe.base)])

    def open(self, name: str) -> Source:
        if name not in self.sources:
            found = self._plain(name) if self.vocabulary is None else self._mapped(name, self.vocabulary)
            raw = self._plain(name)
            self._dtypes[id(found)] = getattr(raw, "kept", raw.dtypes)
            self.sources[name] = found
        return self.sources[name]

    @property
    def leader(self) -> Source:
        """The model whose config is taken, with its own vocabulary."""
        return self._plain(self._first)

    def names(self) -> set[str]:
        """Of all tensors of the models that are merged."""
        return {n for source in self._raw.values() for n in source.shapes}

    def config(self, name: str) -> dict[str, Any]:
        """config.json of the model of a name, or of the one that an adapter or a tenant stands on."""
        model = self._recipe.base if self.stands(name) else self._parts(name)[0]
        return {} if model is None else config_of(self.path(model))

    def dtype(self, read: Read) -> torch.dtype:
        """Of a result like this: of what is on the disk, where an adapter or a tenant is added in float32."""
        return self._dtypes[id(read.source)][read.name]

    def _mapped(self, name: str, words: vocabulary.Vocabulary) -> Source:
        every = {n: self._plain(n) for n in self._tables}
        found = vocabulary.Mapped(name, every, self._tables[name], words.rows)
        self.notices += [n for n in found.notices if n not in self.notices]
        used, wanted = 1 + max(words.tokens.values()), self._recipe.vocabulary
        return Padded(found, used) if wanted is not None and wanted.mean and used < words.rows else found

    def _plain(self, name: str) -> Source:
        if name not in self._raw:
            self._raw[name] = self._open(name)
        return self._raw[name]

    def _settle(self, names: list[str]) -> None:
        """Heads and buffers, which files of one architecture have or leave out, as one."""

        done = settle({n: self._plain(n) for n in names}, lambda name: tied(self.config(name)))
        self._raw.update(done.sources)
        self.untied = done.untied
        self.notices += done.notices

    def path(self, name: str) -> Path:
        """Beside the recipe, else from where we are, else on the hub (or in its cache)."""
        if (near := self._near(name)) is not None:
            return near
        if name.count("/") == 1 and not name.startswith((".", "/", "~")):
            found = from_hub(name)
            self.hub.append(name)
            return found
        raise CommonweightError(f"{name}: no such file or folder, here or beside the recipe")

    def _near(self, name: str) -> Path | None:
        places = (Path(self._recipe.folder) / name, Path(name).expanduser())
        return next((p for p in places if p.exists()), None)

    def _parts(self, name: str) -> tuple[str, str]:
        """(model, adapter) of MODEL+ADAPTER: at the first + that has both here, or the model; else no adapter."""
        words = name.split("+")
        cuts = [("+".join(words[:i]), "+".join(words[i:])) for i in range(1, len(words))]
        if not cuts or self._near(name) is not None or self._tenant(name) is not None:
            return name, ""
        here = [c for c in cuts if self._near(c[0]) is not None]
        both = [c for c in here if self._near(c[1]) is not None or self._tenant(c[1]) is not None]
        return (both or here or cuts)[0]

    def _open(self, name: str) -> Source:
        model, adapter = self._parts(name)
        if adapter:
            return self._on(name, self._plain(model), adapter)
        base = self._recipe.base
        if self.stands(name):
            if base is None or base == name:
                what = "an adapter" if self._tenant(name) is None else "a tenant"
                raise CommonweightError(f"{name}: {what}; write MODEL+{name}, or give base")
            return self._on(name, self._plain(base), name)
        source = whole(open_source(path := self.path(name), "base" if name == base else "model"))
        if unread := getattr(source, "unread", ()):
            read = ", ".join(f.name for f in source.files)
            self.notices.append(f"{name}: {', '.join(unread)} is not read, {read} is, as transformers does")
        if isinstance(source, Quantised):
            self.notices.append(f"{name}: {source.how}")
        return _untied(source, name) if config_of(path).get("tie_word_embeddings") else source

    def stands(self, name: str) -> bool:
        """Whether it is an adapter or a tenant by itself, which changes the recipe's base."""
        if name not in self._standing:
            alone = not self._parts(name)[1]
            self._standing[name] = alone and (
                self._tenant(name) is not None or (_adapter(self.path(name)) / CONFIG).is_file()
            )
        return self._standing[name]

    def _on(self, name: str, base: Source, adapter: str) -> Source:
        if (tenant := self._tenant(adapter)) is None:
            return Adapted(f"model ({name})", base, _adapter(self.path(adapter)))
        found = Tenanted(f"model ({name})", base, tenant)
        self.notices += found.notices
        return found

    def _tenant(self, name: str) -> str | Path | None:
        """A tenant's file, or "STORE:TENANT"; a folder or a file of weights is none."""
        for near in (Path(self._recipe.folder) / name, Path(name).expanduser()):
            if stored(near) is not None or is_tenant(near):
                return near
        return None

    def _join(self, wanted: Vocabulary) -> None:
        """The result's vocabulary; where all have the same and nothing else is asked for, rows stay as they are."""
        recipe = self._recipe
        users = [*([recipe.base] if recipe.base else []), *(i.model for part in recipe.slices for i in part.inputs)]
        users += [r.take for r in recipe.rules if r.take]
        homes = {u: self._parts(u)[0] if self._tenant(u) is None else recipe.base for u in dict.fromkeys(users)}
        folders = {u: self.lead if h is None else self.path(h) for u, h in homes.items()}
        union = wanted.source == "union"
        self.words = self.lead if wanted.source in ("base", "union") else self.path(wanted.source)
        plain = not wanted.tokens and wanted.multiple == 1
        some = not union or vocabulary_file(self.words) is not None
        if plain and some and all(f == self.words or alike(f, self.words) for f in (self.lead, *folders.values())):
            return
        own = {f: tokens_of(f) for f in dict.fromkeys((self.words, self.lead, *folders.values()))}
        target, first = own[self.words], own[self.lead]
        models = {u: own[f] or self._same(u, f, first) for u, f in folders.items()}
        others = [tokens for tokens in models.values() if tokens]
        if target is None and not union and any(tokens != others[0] for tokens in others):
            raise CommonweightError(
                f"tokenizer: {self.words} has no tokenizer.json, and the models' differ; give union"
            )
        if self.words != self.lead and first and target:
            self.numbers = (first, target)
        if (target is None and not union) or (all(tokens == target for tokens in models.values()) and plain):
            return
        self.vocabulary = vocabulary.join(self.words, list(folders.values()), union, wanted.multiple)
        self._tables = vocabulary.tables(self.vocabulary, models, recipe.base, wanted.tokens)

    def _same(self, name: str, folder: Path, lead: dict[str, int] | None) -> dict[str, int]:
        """Of a folder without a vocabulary: the lead's, where its config has as many tokens."""
        mine, theirs = (config_of(f).get("vocab_size") for f in (folder, self.lead))
        if mine != theirs and None not in (mine, theirs):
            raise CommonweightError(
                f"tokenizer: {name} has no vocabulary in its folder, and {mine} tokens by its config, the lead has "
                f"{theirs}; save its tokenizer there"
            )
        if lead:
            self.notices.append(f"{name}: no vocabulary in its folder; its tokens count as those of {self.lead.name}")
        return lead or {}


def _adapter(path: Path) -> Path:
    """The adapter's folder, where its file of factors is given."""
    return path.parent if path.name == TENSORS and (path.parent / CONFIG).is_file() else path


def whole(source: Source) -> Source:
    """Raises: CommonweightError for factors of LoRA as a model."""
    if factor := next(filter(_FACTOR.search, source.shapes), None):
        raise CommonweightError(
            f"{factor}: {source.label} has a factor of LoRA; A and B merged apart are not the merge of B A: give the "
            "adapter's folder with a base, or take cw.merge.lora"
        )
    return source


def _untied(source: Source, name: str) -> Source:
    """Without the head that the model's config ties to its embedding: it is written once."""
    embedding = next((n for n in source.shapes if n.endswith(EMBEDDINGS)), None)
    if HEAD not in source.shapes or embedding is None:
        return source
    if source.shapes[HEAD] != source.shapes[embedding] or not _equal(source, HEAD, embedding):
        raise CommonweightError(
            f"{HEAD}: {name} has tie_word_embeddings, but its head is not its {embedding}; set it to false"
        )
    source.shapes = {n: s for n, s in source.shapes.items() if n != HEAD}
    return source


def _equal(source: Source, a: str, b: str) -> bool:
    rows, *rest = source.shapes[a]
    width, step = int(torch.Size(rest).numel()), 1 << 20
    return all(
        torch.equal(source.flat(a, i, min(step, rows * width - i)), source.flat(b, i, min(step, rows * width - i)))
        for i in range(0, rows * width, step)
    )


def from_hub(name: str) -> Path:
    """USER/NAME, or USER/NAME@REVISION; without another format's copy of the weights, where it has both."""
    from huggingface_hub import snapshot_download

    model, _, revision = name.partition("@")
    try:
        how = {"revision": revision or None, "allow_patterns": FILES}
        found = Path(snapshot_download(model, ignore_patterns=["consolidated*"], **how))
        return found if any(found.glob("*.safetensors")) else Path(snapshot_download(model, **how))
    except Exception as e:
        why = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise CommonweightError(f"{name}: no such folder, and the hub does not give it: {why}") from e
