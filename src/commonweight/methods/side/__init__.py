"""Side paths: networks beside the blocks, which read what they give; nothing is kept of the blocks for gradients."""

from .lst import LST
from .mp import MP
from .pema import PEMA
from .read import READ
from .sherl import SHERL
from .vqt import VQT

__all__ = ["LST", "MP", "PEMA", "READ", "SHERL", "VQT"]
