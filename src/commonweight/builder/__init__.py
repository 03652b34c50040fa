"""Models made of a layout: blocks repeated, dropped, tied; weights read from pools."""

from .anatomy import Anatomy, Weight, anatomy
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
