"""A base of which parts lie elsewhere until they run: on the CPU beside a GPU, or on disk (accelerate's hooks)."""

from __future__ import annotations

import json
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core import CommonweightError
from .names import DEVICE_MAPS

Map = str | Mapping[str, Any]


def device_map(said: Map) -> Any:
    """What ``from_pretrained`` takes: a name, or modules with a place each, as a dict, as JSON or in a JSON file.

    Raises: CommonweightError for anything else, and for a place that torch does not see.
    """
    if not isinstance(said, str):
        return seen(dict(said))
    if said in DEVICE_MAPS:
        return said
    wanted = f"wanted {', '.join(DEVICE_MAPS)}, or a JSON object of modules and places, or a file with one"
    path = Path(said)
    try:
        found = json.loads(path.read_text(encoding="utf-8") if path.suffix == ".json" else said)
    except (OSError, ValueError) as e:
        raise CommonweightError(f"device map {said!r}: {wanted}") from e
    places = found.values() if isinstance(found, dict) else ()
    if not places or not all(isinstance(p, int | str) and not isinstance(p, bool) for p in places):
        raise CommonweightError(f"device map {said!r}: {wanted}")
    return seen(found)


def seen(places: dict[str, Any]) -> dict[str, Any]:
    for module, place in places.items():
        if place == "disk":
            continue
        what = f"device map: {module or 'the model'} on {place!r}"
        try:
            device = torch.device(f"cuda:{place}" if isinstance(place, int) else place)
        except RuntimeError as e:
            raise CommonweightError(f"{what}: no device; wanted cpu, disk, or a GPU, as in 0 or cuda:0") from e
        counted = _COUNTED.get(device.type)
        if counted is not None and (device.index or 0) >= (there := counted.device_count()):
            kind = device.type.upper()
            raise CommonweightError(f"{what}: torch sees {there} {kind} devices; choose another, or cpu, or disk")
    return places


_COUNTED: dict[str, Any] = {"cuda": torch.cuda, "mps": torch.mps, "xpu": torch.xpu}


def how(said: Map) -> tuple[dict[str, Any], Path]:
    """(what ``from_pretrained`` is given, a new folder for what is put on disk)."""
    folder = Path(tempfile.mkdtemp(prefix="commonweight-"))
    return {"device_map": device_map(said), "offload_folder": str(folder)}, folder


def placed(model: nn.Module, folder: Path) -> nn.Module:
    """The loaded model; the folder goes with it. Raises: CommonweightError for a model over several devices."""
    weakref.finalize(model, shutil.rmtree, folder, ignore_errors=True)
    places: Any = getattr(model, "hf_device_map", None) or {}
    on = sorted({str(p) for p in places.values()} - {"cpu", "disk"})
    if len(on) > 1:
        raise CommonweightError(
            f"device map: layers on the devices {', '.join(on)}; a tenant's pools lie on one. Name one of them beside "
            "cpu and disk, or share the base among processes: torchrun ... --shard"
        )
    return model


def mapped(model: nn.Module) -> bool:
    """Whether a device map holds a part of the model."""
    return any(getattr(m, "hf_device_map", None) is not None for m in model.modules())
