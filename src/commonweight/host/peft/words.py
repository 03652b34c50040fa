"""A tokenizer that lies beside an adapter: what it has that the base's has not. A tenant carries none."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ...core import counted

_FILES = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "added_tokens.json"


class Words(NamedTuple):
    """tokens: {text: number} of those that were added. template: for chats."""

    tokens: Mapping[str, int]
    template: str | None


def notice(folder: Path, model: nn.Module) -> str | None:
    """What is said of a folder whose tokenizer is another than the base's; None where both are one, or either lies
    nowhere on this machine. Cost: reading a few files; no code of the folder runs."""
    theirs, base = read(folder), _of_base(model)
    if theirs is None or base is None:
        return None
    more = [t for t, i in theirs.tokens.items() if base.tokens.get(t) != i]
    parts = []
    if more:
        some = ", ".join(map(repr, more[:3])) + (", ..." if len(more) > 3 else "")
        parts.append(f"{counted(len(more), 'added token')} ({some})")
    if theirs.template is not None and theirs.template != base.template:
        parts.append("another chat template" if base.template is not None else "a chat template")
    if not parts:
        return None
    return (
        f"{folder}: its tokenizer has {' and '.join(parts)} that the base's has not; a tenant carries no tokenizer, so "
        f"that texts are read with the base's. Take it for all tenants with --tokenizer {folder} (serve, generate and "
        "chat), or Engine(tokenizer=AutoTokenizer.from_pretrained(...))"
    )


def read(folder: Path) -> Words | None:
    """Of a folder with a tokenizer, else None."""
    if not any((folder / name).is_file() for name in _FILES[:3]):
        return None
    tokens: dict[str, int] = {}
    for entry in _json(folder / _FILES[0]).get("added_tokens") or ():
        if isinstance(entry, Mapping) and isinstance(entry.get("id"), int):
            tokens[str(entry.get("content"))] = entry["id"]
    about = _json(folder / _FILES[1])
    for number, entry in (about.get("added_tokens_decoder") or {}).items():
        if isinstance(entry, Mapping) and str(number).isdigit():
            tokens.setdefault(str(entry.get("content")), int(number))
    tokens |= {t: i for t, i in _json(folder / _FILES[3]).items() if isinstance(i, int)}
    template = about.get("chat_template")
    try:
        template = (folder / _FILES[2]).read_text(encoding="utf-8")
    except (OSError, ValueError):
        pass
    if isinstance(template, list):  # several, by name
        template = next((t.get("template") for t in template if t.get("name") == "default"), None)
    return Words(tokens, template.strip() if isinstance(template, str) else None)


def _of_base(model: nn.Module) -> Words | None:
    config = next((c for m in model.modules() if (c := getattr(m, "config", None)) is not None), None)
    name = getattr(config, "_name_or_path", "") or ""
    if not name:
        return None
    if (folder := Path(name)).is_dir():
        return read(folder)
    from huggingface_hub import try_to_load_from_cache

    try:
        found = next((f for n in _FILES[:2] if isinstance(f := try_to_load_from_cache(name, n), str)), None)
    except ValueError:  # no name of a repository
        return None
    return None if found is None else read(Path(found).parent)


def _json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
