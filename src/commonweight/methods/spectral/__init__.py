"""Spectral: changes in the singular values, the Fourier or the wavelet domain of a weight."""

from . import svf
from .c3a import C3A
from .fourierft import FourierFT
from .soda import SODA
from .spectral_adapter import SpectralAdapter
from .svf import SVF
from .vectorfit import VectorFit
from .waveft import WaveFT

__all__ = [
    "C3A",
    "SODA",
    "SVF",
    "FourierFT",
    "SpectralAdapter",
    "VectorFit",
    "WaveFT",
    "svf",
]
