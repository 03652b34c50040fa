"""A file for each method: a frozen config and pure functions; none knows the engine that carries it.

Adding one: the file, its name here, its test.
"""

from ..registry import available, get, resolve
from . import (
    coded,
    diloco,
    fed_sb,
    fedavg,
    fedkseed,
    fedkseed_pro,
    fedpara,
    ferret,
    ffa_lora,
    legend,
    mezo,
    one_byte,
    pfedpara,
    submodel,
)
from .coded import Coded
from .diloco import DiLoCo
from .fed_sb import FedSB
from .fedavg import FedAvg
from .fedkseed import FedKSeed
from .fedkseed_pro import FedKSeedPro
from .fedpara import FedPara
from .ferret import Ferret
from .ffa_lora import FFALoRA
from .legend import Legend
from .mezo import Mezo
from .one_byte import OneByte
from .pfedpara import PFedParaExchange
from .submodel import SubModel

__all__ = [
    "Coded",
    "DiLoCo",
    "FFALoRA",
    "FedAvg",
    "FedKSeed",
    "FedKSeedPro",
    "FedPara",
    "FedSB",
    "Ferret",
    "Legend",
    "Mezo",
    "OneByte",
    "PFedParaExchange",
    "SubModel",
    "available",
    "coded",
    "diloco",
    "fed_sb",
    "fedavg",
    "fedkseed",
    "fedkseed_pro",
    "fedpara",
    "ferret",
    "ffa_lora",
    "get",
    "legend",
    "mezo",
    "one_byte",
    "pfedpara",
    "resolve",
    "submodel",
]
