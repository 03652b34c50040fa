"""Images and sounds as a row has them: opened by Pillow and soundfile, which are the extra ``senses``."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections.abc import Mapping
from importlib import import_module
from typing import Any

import numpy as np

from ...core import CommonweightError, first_line

EXTRA = "pip install 'commonweight[senses]'"


def wanted(library: str, what: str) -> Any:
    """Raises: CommonweightError that says how to install it."""
    try:
        return import_module(library)
    except ImportError as e:
        raise CommonweightError(f"{what} are read with {library.partition('.')[0]}: {EXTRA}") from e


def decoded(value: Any) -> bool:
    """Whether it is a sound that `datasets` has opened: {"array", "sampling_rate"}, whatever path it names beside."""
    return isinstance(value, Mapping) and value.get("array") is not None


def source(value: Any) -> Any:
    """What a library can open of a row's value: a path, or bytes. `datasets` has {"bytes", "path"} of a file."""
    if decoded(value):
        return value
    if isinstance(value, Mapping) and ("bytes" in value or "path" in value):
        value = value["bytes"] if value.get("bytes") is not None else value.get("path")
    return io.BytesIO(value) if isinstance(value, bytes) else value


def lasting(value: Any) -> Any:
    """What an example keeps of a row's value: of a file its whole path, wherever a later run stands."""
    at = source(value)
    return os.path.abspath(os.fspath(at)) if isinstance(at, str | os.PathLike) else value


def digest(value: Any) -> str:
    """Of a file its name and size; of anything else what it holds."""
    at = source(value)
    if isinstance(at, str | os.PathLike):
        return f"{os.fspath(at)} {os.path.getsize(at)}"
    if isinstance(at, io.BytesIO):
        held = at.getvalue()
    else:
        try:
            held = b"%d " % _rate(at) + _wave(at).tobytes() if decoded(at) else at.tobytes()
        except AttributeError as e:
            raise CommonweightError(f"cannot be read: wanted a path, bytes or what datasets gives: {e}") from e
    return hashlib.blake2b(held, digest_size=8).hexdigest()


def image(value: Any) -> Any:
    """In RGB, the way up that its camera says. value: a path, bytes, or an image of Pillow.

    Raises: CommonweightError for what is none.
    """
    Image, ops = wanted("PIL.Image", "images"), wanted("PIL.ImageOps", "images")
    try:
        opened = value if isinstance(value, Image.Image) else Image.open(source(value))
        return ops.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, SyntaxError, TypeError, AttributeError, Image.DecompressionBombError) as e:
        raise CommonweightError(f"cannot be read as an image: {first_line(e)}") from e


def looked_at(value: Any) -> None:
    """Whether it is an image, without making its pixels: a torn file may pass. Raises: CommonweightError."""
    Image = wanted("PIL.Image", "images")
    if isinstance(value, Image.Image):
        return
    try:
        with Image.open(source(value)) as opened:
            opened.verify()
    except (OSError, ValueError, SyntaxError, TypeError, AttributeError, Image.DecompressionBombError) as e:
        raise CommonweightError(f"cannot be read as an image: {first_line(e)}") from e


def seconds(value: Any) -> float:
    """Of a sound, from its header. Raises: CommonweightError for what is none, and for one of no length."""
    if decoded(value):
        length = len(_wave(value)) / _rate(value)
    else:
        soundfile = wanted("soundfile", "sounds")
        try:
            about = soundfile.info(_file(value))
        except (OSError, RuntimeError, TypeError) as e:
            raise CommonweightError(f"cannot be read as a sound: {first_line(e)}") from e
        length = about.frames / about.samplerate
    if length <= 0:
        raise CommonweightError("cannot be read as a sound: it has no length")
    return length


def sound(value: Any, rate: int, most: float) -> np.ndarray:
    """(samples,) float32, the mean of its channels, at `rate` a second; at most the first `most` seconds.

    value: a path, bytes, or {"array" (samples,) or (channels, samples), "sampling_rate"}; lists will do.
    """
    if decoded(value):
        had = _rate(value)
        x = _wave(value)[: round(most * had)]
    else:
        soundfile = wanted("soundfile", "sounds")
        try:
            with soundfile.SoundFile(_file(value)) as f:
                had = f.samplerate
                x = f.read(round(most * had), dtype="float32", always_2d=True).mean(1)
        except (OSError, RuntimeError, TypeError) as e:
            raise CommonweightError(f"cannot be read as a sound: {first_line(e)}") from e
    if had == rate:
        return x
    g = math.gcd(rate, had)
    return wanted("scipy.signal", "sounds of another rate").resample_poly(x, rate // g, had // g).astype(np.float32)


def _file(value: Any) -> Any:
    """As `source`, of a sound; soundfile would open a number as a file that this process has open."""
    if (at := source(value)) is None or isinstance(at, int):
        raise CommonweightError(f"cannot be read as a sound: {at!r} is neither a path nor bytes")
    return at


def _wave(value: Mapping[str, Any]) -> np.ndarray:
    """(samples,) float32 of a decoded sound, the mean of its channels. Raises: CommonweightError."""
    try:
        x = np.asarray(value["array"], dtype=np.float32)
    except (TypeError, ValueError) as e:
        raise CommonweightError(f"cannot be read as a sound: array: {first_line(e)}") from e
    if x.ndim not in (1, 2):
        raise CommonweightError(
            f"cannot be read as a sound: array of shape {x.shape}; wanted (samples,) or (channels, samples)"
        )
    return x.mean(0) if x.ndim == 2 else x


def _rate(value: Mapping[str, Any]) -> int:
    """Raises: CommonweightError for a decoded sound that does not say how many samples a second has."""
    try:
        if (rate := int(value["sampling_rate"])) > 0:
            return rate
    except (KeyError, TypeError, ValueError):
        pass
    raise CommonweightError(
        f"cannot be read as a sound: sampling_rate is {value.get('sampling_rate')!r}; wanted samples a second"
    )
