"""Statistics files: what a method must know of data, collected once, read piece by piece beside the models.

One safetensors file. Tensors are named ``kind/name``, name being that of the weight they belong to:

- ``fisher/W``: diagonal of the Fisher information, the shape of W; a mean over examples.
- ``gram/W``: X'X / n of the n tokens that came into the linear layer of W (d_out, d_in); (d_in, d_in).
- ``activations/W``: the first tokens that came into it, (n, d_in).
- ``coefficients/W`` (T,), ``mask/W`` (the shape of W): what a method's learn() found.

Metadata key ``commonweight-statistics`` holds a JSON object: ``format`` 1, what was collected from what, and the
``fingerprint`` of the weights, by which `stream.beside` sees that a file is used with its own model, and the ``digest``
of all the rest, by which damage is seen when the file is opened; files of before have none.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ...core import CommonweightError
from ...formats import atomic
from ..sources.at import At

FORMAT = 1
FINGERPRINT = "fingerprint"
DIGEST = "digest"
KEY = "commonweight-statistics"
KINDS = ("fisher", "gram", "activations", "coefficients", "mask")


class Statistics:
    """Named tensors beside a model, read when asked for. label: how errors call them; header: what they are of.

    Only the list of a file's tensors is held in memory; piece() reads only the rows of a piece.
    """

    def __init__(self, label: str, tensors: Mapping[str, Tensor] | Path, header: Mapping[str, Any] | None = None):
        self.label, self._from, self.header = label, tensors, dict(header or {})

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        if not isinstance(self._from, Path):
            return {k: tuple(t.shape) for k, t in self._from.items()}
        return {k: tuple(self._file.get_slice(k).get_shape()) for k in self._file.keys()}

    @cached_property
    def _file(self) -> Any:
        return safe_open(self._from, "pt")

    def kinds(self) -> list[str]:
        return sorted({k.split("/", 1)[0] for k in self.shapes})

    def has(self, kind: str, name: str) -> bool:
        return f"{kind}/{name}" in self.shapes

    def whole(self, kind: str, name: str, shape: tuple[int, ...] | None = None) -> Tensor:
        """A tensor in float32. Raises: CommonweightError when it is missing, of another shape, or not finite."""
        key = self._key(kind, name, shape)
        return self._finite(self._slice(key, None), kind, name)

    def piece(self, kind: str, at: At, like: Tensor) -> Tensor:
        """The part of a model-shaped tensor that belongs to a piece of that model's tensor, in the piece's shape."""
        key, count = self._key(kind, at.name, at.shape), like.numel()
        if count == math.prod(at.shape):
            return self._finite(self._slice(key, None), kind, at.name).view(like.shape)
        width = math.prod(at.shape[1:])
        first = at.start // width
        rows = self._slice(key, slice(first, -(-(at.start + count) // width))).reshape(-1)
        mine = rows[at.start - first * width :][:count]
        return self._finite(mine, kind, at.name).view(like.shape)

    def digest(self) -> str:
        """Of all that it holds, to know it again."""
        h = hashlib.blake2b(digest_size=16)
        if isinstance(self._from, Path):
            with open(self._from, "rb") as f:
                while part := f.read(1 << 20):
                    h.update(part)
        else:
            for name, t in sorted(self._from.items()):
                h.update(name.encode())
                h.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return h.hexdigest()

    def save(self, path: str | Path, *, overwrite: bool = True) -> Path:
        """Writes all of it as one file, atomically. overwrite: False refuses to replace another file, with a
        CommonweightError."""
        tensors = {k: self._slice(k, None).contiguous() for k in sorted(self.shapes)}
        header = {"format": FORMAT, **{k: v for k, v in self.header.items() if k != DIGEST}}
        body = save(tensors)
        told = json.dumps({**header, DIGEST: _digest(header, body)}, sort_keys=True)
        length = int.from_bytes(body[:8], "little")
        entries = {**json.loads(body[8 : 8 + length]), "__metadata__": {KEY: told}}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        data = len(text).to_bytes(8, "little") + text + body[8 + length :]
        return atomic.write_new(Path(path), data, overwrite=overwrite)

    def _key(self, kind: str, name: str, shape: tuple[int, ...] | None) -> str:
        key = f"{kind}/{name}"
        if key not in self.shapes:
            raise CommonweightError(
                f"{name}: {self.label} has no {kind} of it; collect it for this model, or leave the tensor out"
            )
        if shape is not None and self.shapes[key] != shape:
            raise CommonweightError(
                f"{name}: {self.label} has {kind} of shape {self.shapes[key]}, wanted {shape}; it is another model's"
            )
        return key

    def _slice(self, key: str, rows: slice | None) -> Tensor:
        if not isinstance(self._from, Path):
            return (self._from[key] if rows is None else self._from[key][rows]).detach()
        return self._file.get_tensor(key) if rows is None else self._file.get_slice(key)[rows]

    def _finite(self, t: Tensor, kind: str, name: str) -> Tensor:
        t = t.float()
        if not t.isfinite().all():
            raise CommonweightError(f"{name}: {self.label} has NaN or infinity in its {kind}; collect it again")
        return t


def open_statistics(value: Any, label: str, kind: str | None = None) -> Statistics:
    """Statistics, a mapping ``kind/name`` -> tensor, or a file of them; `kind` must occur in it.

    Raises: CommonweightError when it is not there, damaged, of a later format, or holds no `kind`.
    """
    if isinstance(value, Statistics):
        found = Statistics(label, value._from, value.header)
    elif isinstance(value, str | Path):
        found = Statistics(f"{label} ({value})", Path(value), _header(Path(value), label))
    elif isinstance(value, Mapping) and all(isinstance(t, Tensor) for t in value.values()):
        found = Statistics(label, value)
    else:
        raise CommonweightError(f"{label} is a {type(value).__name__}; wanted statistics, or the path of their file")
    if kind is not None and kind not in found.kinds():
        raise CommonweightError(
            f"{found.label} holds {', '.join(found.kinds()) or 'nothing'}; wanted {kind}, as `commonweight statistics "
            f"--kinds {kind}` writes it"
            if kind in ("fisher", "gram", "activations")
            else f"{found.label} holds {', '.join(found.kinds()) or 'nothing'}; wanted {kind}, as learn() gives it"
        )
    return found


def fingerprint(
    shapes: Mapping[str, tuple[int, ...]], flat: Callable[[str, int, int], Tensor]
) -> dict[str, list[float]]:
    """Tensor -> 16 of its numbers (all, where it has fewer), in float32. flat(name, start, count): as a Source has it.

    The numbers and no digest of them: a copy in another precision, and a part of the model, are known again.
    Cost: four short reads a tensor.
    """
    out = {}
    for name, shape in shapes.items():
        n = math.prod(shape)
        places = [(0, n)] if n <= 16 else [(k * 2654435761 % (n - 3), 4) for k in range(1, 5)]
        out[name] = torch.cat([flat(name, *p).reshape(-1).float() for p in places]).tolist()
    return out


def alike(told: Sequence[float], here: Sequence[float]) -> bool:
    """Whether two fingerprints are of one tensor, or of copies of it: compared in the coarser precision of the two."""
    if len(told) != len(here):
        return False
    a, b = torch.tensor(told), torch.tensor(here)
    for kind in (torch.bfloat16, torch.float16):
        if any(torch.equal(x.to(kind).float(), x) for x in (a, b)):
            a, b = a.to(kind).float(), b.to(kind).float()
            break
    largest = a.abs().max().item() if len(a) else 0.0
    return torch.allclose(a, b, rtol=0, atol=1e-6 * largest, equal_nan=True)


def _header(path: Path, label: str) -> dict[str, Any]:
    if not path.is_file():
        raise CommonweightError(f"{label}: {path}: no such file")
    try:
        with safe_open(path, "pt") as f:
            raw = (f.metadata() or {}).get(KEY)
        header = json.loads(raw) if raw is not None else None
    except (SafetensorError, OSError, ValueError) as e:
        raise CommonweightError(f"{label}: {path} is damaged, or is not a safetensors file: {e}") from e
    if not isinstance(header, dict) or not isinstance(header.get("format"), int):
        raise CommonweightError(f"{label}: {path} is not a statistics file; `commonweight statistics` writes one")
    if header["format"] > FORMAT:
        raise CommonweightError(f"{label}: {path} has format {header['format']}; upgrade commonweight")
    if (told := header.get(DIGEST)) is not None:
        at = path.stat()
        if _of_file(path, at.st_size, at.st_mtime_ns) != told:
            raise CommonweightError(
                f"{label}: {path} is damaged: its numbers are not those that were written; collect them, or copy the "
                "file, again"
            )
    return header


@lru_cache(64)
def _of_file(path: Path, size: int, changed: int) -> str:
    """The digest that a file should say; it is read once, in pieces, while it stays as it is."""
    with open(path, "rb") as f:
        start = f.read(8)
        text = f.read(int.from_bytes(start, "little"))
        entries = json.loads(text)
        header = json.loads(entries.pop("__metadata__")[KEY])
        header.pop(DIGEST)
        bare = json.dumps(entries).encode()
        return _digest(header, len(bare).to_bytes(8, "little") + bare, iter(lambda: f.read(1 << 22), b""))


def _digest(header: Mapping[str, Any], file: bytes, rest: Iterable[bytes] = ()) -> str:
    """Of a header without its digest, and of a safetensors file without metadata, whose first part has the entries."""
    length = int.from_bytes(file[:8], "little")
    entries = json.loads(file[8 : 8 + length])
    h = hashlib.blake2b(json.dumps([header, entries], sort_keys=True).encode(), digest_size=16)
    h.update(memoryview(file)[8 + length :])
    for part in rest:
        h.update(part)
    return h.hexdigest()
