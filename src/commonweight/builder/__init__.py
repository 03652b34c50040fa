"""Models made of a layout: blocks repeated, dropped, tied; weights read from pools."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .dissect import Anatomy, Weight, anatomy
    from .inits import Eye, Mean, Originals, Residual, Templates
    from .layout import Layout, Unit, relaxed, tied, walked
    from .tree import build

__all__ = [
    "Anatomy",
    "Eye",
    "Layout",
    "Mean",
    "Originals",
    "Residual",
    "Templates",
    "Unit",
    "Weight",
    "anatomy",
    "build",
    "relaxed",
    "tied",
    "walked",
]

_HOMES = {
    ".dissect": ("Anatomy", "Weight", "anatomy"), ".inits": ("Eye", "Mean", "Originals", "Residual", "Templates"),
    ".layout": ("Layout", "Unit", "relaxed", "tied", "walked"), ".tree": ("build",),
}  # fmt: skip
_LATER = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Imports on first use: a folder is opened without what makes a new model."""
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_LATER[name], __name__), name)
    return value
