"""A tenant's file to the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..core import CommonweightError, first_line

NAME = r"[\w.-]+(/[\w.-]+)?"


def check(repo: str) -> None:
    """Raises: CommonweightError for what is no name of a repository."""
    if not re.fullmatch(NAME, repo):
        raise CommonweightError(f"--push-to-hub {repo}: wanted a repository's name, USER/NAME")


def push(repo: str, files: Iterable[Path], base: str, api: Any = None) -> str:
    """Uploads files in one commit into a repository of models, a private one where it is not there yet; a README is
    written where there is none. Returns its address. The token is the one that `hf auth login` keeps, or HF_TOKEN.

    api: what to upload through; None: huggingface_hub's HfApi. Raises: CommonweightError with the hub's reason.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check(repo)
    api = HfApi() if api is None else api
    files = list(files)
    try:
        made = api.create_repo(repo, exist_ok=True, private=True)
        repo = getattr(made, "repo_id", repo)
        added = [CommitOperationAdd(f.name, f.read_bytes()) for f in files if f.is_file()]
        if not api.file_exists(repo, "README.md"):
            added.append(CommitOperationAdd("README.md", card(base, files[0].name).encode()))
        api.create_commit(repo, added, commit_message=f"Upload {files[0].stem}")
    except Exception as e:  # of the network, the account, the repository: the files are there all the same
        raise CommonweightError(
            f"--push-to-hub {repo}: {first_line(e)}; the tenant lies in {files[0]} and can be uploaded by hf upload"
        ) from e
    return f"https://huggingface.co/{repo}"


def card(base: str, file: str) -> str:
    """A README that says what the file is; base_model only where it is a name on the hub."""
    named = f"base_model: {base}\n" if re.fullmatch(NAME, base) and not Path(base).exists() else ""
    return (
        f"---\nlibrary_name: commonweight\n{named}tags: [commonweight]\n---\n\n# {file}\n\n"
        f"A tenant of commonweight on {base if named else 'a base model'}:\n\n"
        f"```python\nhost = cw.Host(model)\nhost.load({Path(file).stem!r}, {file!r})\n```\n"
    )
