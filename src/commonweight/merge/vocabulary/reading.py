"""A folder's vocabulary, from whichever files it lies in; and which files are a tokenizer's."""

from __future__ import annotations

import filecmp
import re
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from ...core import CommonweightError, first_line

FILE = "tokenizer.json"
# files of which each has the tokens, in the order in which they are named in messages
_TOKENS = (FILE, "vocab.txt", "vocab.json", "*.model", "*.spm", "*.tiktoken", "tekken.json", "encoder.json")
_MORE = ("merges.txt", "vocab.bpe", "added_tokens.json", "bpe.codes")  # beside those
_ABOUT = ("tokenizer_config.json", "special_tokens_map.json", "chat_template*", "tokenization_*.py")
_TEMPLATES = "additional_chat_templates"


def holds_tokens(name: str) -> bool:
    """Whether a file of this name has a vocabulary, or a part of one."""
    return any(fnmatchcase(name, p) for p in (*_TOKENS, *_MORE))


def of_tokenizer(at: Path) -> bool:
    """Whether a file, by its path in a model's folder, is the tokenizer's."""
    if at.parts[0] == _TEMPLATES:
        return True
    return len(at.parts) == 1 and (holds_tokens(at.name) or any(fnmatchcase(at.name, p) for p in _ABOUT))


def vocabulary_file(folder: Path) -> str | None:
    """The file with a folder's tokens; None where it has none."""
    there = sorted(f.name for f in folder.iterdir() if f.is_file()) if folder.is_dir() else []
    return next((n for p in _TOKENS for n in there if fnmatchcase(n, p)), None)


def alike(a: Path, b: Path) -> bool:
    """Whether two folders have the same vocabulary by the bytes of their files; nothing is parsed."""
    names = vocabulary_file(a), vocabulary_file(b)
    if names[0] is None or names[0] != names[1]:
        return False
    every = [names[0]] if names[0] == FILE else [names[0], *_MORE]
    return all(
        (a / n).is_file() == (b / n).is_file() and (not (a / n).is_file() or filecmp.cmp(a / n, b / n, shallow=False))
        for n in every
    )


def tokenizer_of(folder: Path) -> Any:
    """The folder's tokenizer (of the library tokenizers): tokenizer.json, else what transformers makes of its other
    files; None where there are none. Raises: CommonweightError for files that cannot be read."""
    name = vocabulary_file(folder)
    if name is None:
        return None
    if name == FILE:
        try:
            from tokenizers import Tokenizer

            return Tokenizer.from_file(str(folder / name))
        except Exception as e:  # the library raises a bare Exception
            raise CommonweightError(f"{folder / name}: cannot be read as a tokenizer: {e}") from e
    import transformers as tf

    try:
        found = tf.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        backend = getattr(found, "backend_tokenizer", None)
        if backend is None:
            raise ValueError(f"{type(found).__name__} has no fast version")
        return backend
    except Exception as e:  # whatever a tokenizer's constructor raises
        raise CommonweightError(
            f"{folder / name}: the vocabulary cannot be read here ({re.sub(r'[.:]$', '', first_line(e))}); save the "
            f"model's fast tokenizer, {FILE}, there"
        ) from e


def tokens_of(folder: Path) -> dict[str, int] | None:
    """Token -> row; None where the folder has no vocabulary."""
    found = tokenizer_of(folder)
    return None if found is None else found.get_vocab(with_added_tokens=True)
