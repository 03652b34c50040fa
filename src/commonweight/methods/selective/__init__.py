"""Selective: numbers that the model has already: all of them, biases, norms, entries of the vocabulary, none."""

from . import probe
from .apet import APET
from .bitfit import BitFit
from .diff_pruning import DiffPruning
from .esft import ESFT
from .fish import FISH
from .full import Full
from .lntuning import LNTuning
from .mobiletl import MobileTL
from .neft import NeFT
from .probe import Probe
from .sct import SCT
from .tokens import Tokens
from .two_stage import TwoStage

__all__ = [
    "APET",
    "ESFT",
    "FISH",
    "SCT",
    "BitFit",
    "DiffPruning",
    "Full",
    "LNTuning",
    "MobileTL",
    "NeFT",
    "Probe",
    "Tokens",
    "TwoStage",
    "probe",
]
