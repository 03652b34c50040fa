"""Side paths: networks beside the blocks, which read what they give; nothing is kept of the blocks for gradients."""

from .lst import LST
from .mp import MP
from .read import READ
from .sherl import SHERL
from .vqt import VQT

__all__ = ["LST", "MP", "READ", "SHERL", "VQT"]
