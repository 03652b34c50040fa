"""Parquet files, folders that `datasets` wrote, and data sets of the hub: what has a schema of its own."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from ...core import CommonweightError, first_line, unknown
from .columns import Row


def read_parquet(path: Path) -> list[Row]:
    import datasets

    with tempfile.TemporaryDirectory() as cache, _quiet(datasets):
        found = datasets.load_dataset(
            "parquet", data_files=str(path), split="train", cache_dir=cache, keep_in_memory=True
        )
        return plain(found)


def is_folder(path: Path) -> bool:
    """Whether `datasets` wrote this folder with save_to_disk."""
    return (path / "dataset_dict.json").is_file() or (path / "state.json").is_file()


def read_folder(path: Path, split: str) -> list[Row]:
    import datasets

    try:
        with _quiet(datasets):
            found = datasets.load_from_disk(str(path))
    except Exception as e:
        raise CommonweightError(f"{path}: cannot be read as a folder of datasets: {first_line(e)}") from e
    if isinstance(found, datasets.DatasetDict):
        if split not in found and len(found) == 1:
            split = str(next(iter(found)))
        if split not in found:
            raise unknown("split", split, map(str, found), f"of {path}; name it as {path}:SPLIT")
        found = found[split]
    return plain(found)


def read_hub(source: str, split: str) -> list[Row]:
    import datasets

    name, *more = source.split(":")
    if len(more) > 2:
        raise CommonweightError(f"{source}: wanted name, name:split or name:configuration:split")
    split, configuration = more[-1] if more else split, more[0] if len(more) == 2 else None
    try:
        with _quiet(datasets):
            return plain(datasets.load_dataset(name, configuration, split=split))
    except Exception as e:
        raise CommonweightError(
            f"{source}: neither a file here nor a data set that the hub gives: {first_line(e)}"
        ) from e


def plain(found: Any) -> list[Row]:
    """Rows as dicts, class numbers turned into their names; images and sounds stay files, {"bytes", "path"}."""
    for k, feature in found.features.items():
        if type(feature).__name__ in ("Image", "Audio"):
            found = found.cast_column(k, type(feature)(decode=False))
    classes = {k: f for k, f in found.features.items() if type(f).__name__ == "ClassLabel"}
    rows = [{k: _without_none(v) for k, v in r.items()} for r in found]
    for k, feature in classes.items():
        for r in rows:
            r[k] = feature.int2str(r[k]) if r[k] is not None and r[k] >= 0 else None
    return rows


def _without_none(value: Any) -> Any:
    """Arrow gives every message and every tool the keys that any of them has; those that it made up are None."""
    if isinstance(value, dict):
        return {k: _without_none(v) for k, v in value.items() if v is not None}
    return [_without_none(v) for v in value] if isinstance(value, list) else value


class _quiet:
    """No progress bars of `datasets` within it."""

    def __init__(self, datasets: Any):
        self.datasets = datasets

    def __enter__(self) -> None:
        self.was = self.datasets.is_progress_bar_enabled()
        self.datasets.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        if self.was:
            self.datasets.enable_progress_bar()
