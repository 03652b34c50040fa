"""Selective: numbers that the model has already: all of them, biases, norms, entries of the vocabulary, none."""

from . import probe
from .bitfit import BitFit
from .fish import FISH
from .full import Full
from .lntuning import LNTuning
from .probe import Probe
from .tokens import Tokens

__all__ = [
    "FISH",
    "BitFit",
    "Full",
    "LNTuning",
    "Probe",
    "Tokens",
    "probe",
]
