"""Spectral: changes in the singular values, the Fourier or the wavelet domain of a weight."""

from . import svf
from .c3a import C3A
from .fourierft import FourierFT
from .svf import SVF

__all__ = [
    "C3A",
    "SVF",
    "FourierFT",
    "svf",
]
