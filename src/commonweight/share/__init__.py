"""Smaller models: layers, matrices and embeddings of one model read common pools."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..builder import anatomy
    from ..builder.depths import depths
    from ..builder.load import load
    from . import methods, packing, recommend, sampling
    from .choosing import choose, codes, settle
    from .cost import plan
    from .depthwise import Depthwise
    from .healing import Healed, heal
    from .make import layout, share
    from .merging import Merging
    from .methods import available
    from .saving import save
    from .xkv import XKV

__all__ = [
    "XKV",
    "Depthwise",
    "Healed",
    "Merging",
    "anatomy",
    "available",
    "choose",
    "codes",
    "depths",
    "heal",
    "layout",
    "load",
    "methods",
    "packing",
    "plan",
    "recommend",
    "sampling",
    "save",
    "settle",
    "share",
]

_HOMES = {
    "XKV": ".xkv", "Depthwise": ".depthwise", "Merging": ".merging",
    "Healed": ".healing", "anatomy": "..builder", "available": ".methods",
    "choose": ".choosing", "codes": ".choosing", "settle": ".choosing", "depths": "..builder.depths", "heal":
    ".healing", "layout": ".make", "load": "..builder.load", "plan": ".cost", "save": ".saving", "share": ".make",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    """Imports on first use."""
    if name in ("methods", "packing", "recommend", "sampling", "searching", "splitting", "xkv"):
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_HOMES[name], __name__), name)
    return value
