"""A file for each method: a frozen config and pure functions; none knows the engine that carries it.

Adding one: the file, its name here, its test.
"""

from ..registry import available, get, resolve
from . import (
    coded,
    diloco,
    fed_sb,
    fedavg,
    fedcac,
    fedkseed,
    fedkseed_pro,
    fedpara,
    ferret,
    ffa_lora,
    fish_mask,
    flag,
    frl,
    legend,
    median,
    merged,
    mezo,
    one_byte,
    pfedpara,
    submodel,
    trimmed_mean,
)
from .coded import Coded
from .diloco import DiLoCo
from .fed_sb import FedSB
from .fedavg import FedAvg
from .fedcac import FedCAC
from .fedkseed import FedKSeed
from .fedkseed_pro import FedKSeedPro
from .fedpara import FedPara
from .ferret import Ferret
from .ffa_lora import FFALoRA
from .fish_mask import FishMask
from .flag import Flag
from .frl import FRL
from .legend import Legend
from .median import Median
from .merged import Merged
from .mezo import Mezo
from .one_byte import OneByte
from .pfedpara import PFedParaExchange
from .submodel import SubModel
from .trimmed_mean import TrimmedMean

__all__ = [
    "FRL",
    "Coded",
    "DiLoCo",
    "FFALoRA",
    "FedAvg",
    "FedCAC",
    "FedKSeed",
    "FedKSeedPro",
    "FedPara",
    "FedSB",
    "Ferret",
    "FishMask",
    "Flag",
    "Legend",
    "Median",
    "Merged",
    "Mezo",
    "OneByte",
    "PFedParaExchange",
    "SubModel",
    "TrimmedMean",
    "available",
    "coded",
    "diloco",
    "fed_sb",
    "fedavg",
    "fedcac",
    "fedkseed",
    "fedkseed_pro",
    "fedpara",
    "ferret",
    "ffa_lora",
    "fish_mask",
    "flag",
    "frl",
    "get",
    "legend",
    "median",
    "merged",
    "mezo",
    "one_byte",
    "pfedpara",
    "resolve",
    "submodel",
    "trimmed_mean",
]
