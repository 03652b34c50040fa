"""Sequences: what is trained stands in front of a row, as tokens or keys and values, or acts so; no weight changes."""

from . import mam, p_tuning, prefix_tuning, prompt_pool, prompt_tuning
from .aligner import Aligner
from .apt_prompts import APTPrompts
from .dept import DePT
from .mam import MAM
from .p_tuning import PTuning
from .prefix_tuning import PrefixTuning
from .prompt_pool import PromptPool
from .prompt_tuning import PromptTuning
from .rpo import RPO
from .state_offset import StateOffset

__all__ = [
    "MAM",
    "RPO",
    "APTPrompts",
    "Aligner",
    "DePT",
    "PTuning",
    "PrefixTuning",
    "PromptPool",
    "PromptTuning",
    "StateOffset",
    "mam",
    "p_tuning",
    "prefix_tuning",
    "prompt_pool",
    "prompt_tuning",
]
