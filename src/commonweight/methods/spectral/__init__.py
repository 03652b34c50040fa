"""Spectral: changes in the singular values, the Fourier or the wavelet domain of a weight."""

from . import svf
from .svf import SVF

__all__ = [
    "SVF",
    "svf",
]
