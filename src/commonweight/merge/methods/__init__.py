"""One file per method: a pure function over one tensor of every model. Adding one: the file, this list, its test."""

from .arcee_fusion import arcee_fusion
from .breadcrumbs import breadcrumbs
from .breadcrumbs_ties import breadcrumbs_ties
from .consensus import consensus
from .dare_linear import dare_linear
from .dare_ties import dare_ties
from .della import della
from .della_linear import della_linear
from .emr import emr
from .iso_c import iso_c
from .karcher import karcher
from .knots import knots
from .linear import linear
from .lines import lines
from .model_stock import model_stock
from .multislerp import multislerp
from .nearswap import nearswap
from .nuslerp import nuslerp
from .opcm import opcm
from .passthrough import passthrough
from .pcb import pcb
from .ram import ram
from .ramplus_tl import ramplus_tl
from .robust_signatures import robust_signatures
from .sce import sce
from .slerp import slerp
from .tall_masks import tall_masks
from .task_arithmetic import task_arithmetic
from .ties import ties
from .tsv_m import tsv_m
from .twin_merging import twin_merging
from .variance_corrected import variance_corrected

__all__ = [
    "arcee_fusion",
    "breadcrumbs",
    "breadcrumbs_ties",
    "consensus",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "emr",
    "iso_c",
    "karcher",
    "knots",
    "linear",
    "lines",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "opcm",
    "passthrough",
    "pcb",
    "ram",
    "ramplus_tl",
    "robust_signatures",
    "sce",
    "slerp",
    "tall_masks",
    "task_arithmetic",
    "ties",
    "tsv_m",
    "twin_merging",
    "variance_corrected",
]
