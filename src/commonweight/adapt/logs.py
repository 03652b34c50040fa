"""A run's progress written where people look at curves: TensorBoard or trackio."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from ..core import CommonweightError, unknown
from .names import LOGS
from .trainer import Progress

Write = Callable[[dict[str, float], int], None]


def parts(to: str) -> tuple[str, str | None]:
    """("tensorboard", "runs") of ``tensorboard:runs``. Raises: CommonweightError for another name."""
    name, _, folder = to.partition(":")
    if name not in LOGS:
        raise unknown("log", name, LOGS)
    return name, folder or None


@contextmanager
def logged(
    to: str | None, run: str, progress: Callable[[Progress], None] | None = None
) -> Iterator[Callable[[Progress], None] | None]:
    """A progress callback that also writes each step: loss, rate, epoch, tokens and the metrics of dev rows.

    to: ``tensorboard`` or ``trackio``, with ``:folder`` after it; None: nothing is written. Without a folder
    TensorBoard writes into ``runs/<run>``, trackio where it keeps its projects. Raises: CommonweightError where
    the library is not there.
    """
    if to is None:
        yield progress
        return
    name, folder = parts(to)
    write, close = (_tensorboard if name == "tensorboard" else _trackio)(folder, run)

    def told(p: Progress) -> None:
        write(values(p), p.step)
        if progress is not None:
            progress(p)

    try:
        yield told
    finally:
        close()


def values(p: Progress) -> dict[str, float]:
    out = {"train/loss": p.loss, "train/learning_rate": p.rate, "train/epoch": p.epoch, "train/tokens": float(p.tokens)}
    if p.memory:
        out["train/peak_memory_bytes"] = float(p.memory)
    return out | {f"dev/{k}": float(v) for k, v in (p.dev or {}).items() if k != "n"}


def _load(module: str, package: str) -> Any:
    try:
        return import_module(module)
    except ImportError as e:
        raise CommonweightError(f"--log-to {package} needs it: pip install {package} ({e})") from e


def _tensorboard(folder: str | None, run: str) -> tuple[Write, Callable[[], None]]:
    writer = _load("torch.utils.tensorboard", "tensorboard").SummaryWriter(folder or str(Path("runs") / run))

    def write(values: dict[str, float], step: int) -> None:
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    return write, writer.close


def _trackio(folder: str | None, run: str) -> tuple[Write, Callable[[], None]]:
    if folder is not None:
        os.environ["TRACKIO_DIR"] = str(Path(folder).absolute())  # it is read when trackio is imported
    trackio = _load("trackio", "trackio")
    trackio.init(project="commonweight", name=run)
    return lambda values, step: trackio.log(values, step=step), trackio.finish
