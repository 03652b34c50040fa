"""One file per method: a pure function over one tensor of every model. Adding one: the file, this list, its test."""

from .adamerging import adamerging
from .arcee_fusion import arcee_fusion
from .atlas import atlas
from .bayesian import bayesian
from .breadcrumbs import breadcrumbs
from .breadcrumbs_ties import breadcrumbs_ties
from .compeft import compeft
from .concrete import concrete
from .consensus import consensus
from .dam import dam
from .dare_linear import dare_linear
from .dare_ties import dare_ties
from .della import della
from .della_linear import della_linear
from .doge import doge
from .emr import emr
from .fisher import fisher
from .iso_c import iso_c
from .karcher import karcher
from .knots import knots
from .layer_swap import layer_swap
from .linear import linear
from .lines import lines
from .model_stock import model_stock
from .multislerp import multislerp
from .nearswap import nearswap
from .nuslerp import nuslerp
from .opcm import opcm
from .pareto import pareto
from .passthrough import passthrough
from .pcb import pcb
from .ram import ram
from .ramplus_tl import ramplus_tl
from .regmean import regmean
from .robust_signatures import robust_signatures
from .sce import sce
from .skillpack import skillpack
from .slerp import slerp
from .tall_masks import tall_masks
from .task_arithmetic import task_arithmetic
from .ties import ties
from .tsv_m import tsv_m
from .twin_merging import twin_merging
from .unconstrained import unconstrained
from .variance_corrected import variance_corrected
from .wudi import wudi

__all__ = [
    "adamerging",
    "arcee_fusion",
    "atlas",
    "bayesian",
    "breadcrumbs",
    "breadcrumbs_ties",
    "compeft",
    "concrete",
    "consensus",
    "dam",
    "dare_linear",
    "dare_ties",
    "della",
    "della_linear",
    "doge",
    "emr",
    "fisher",
    "iso_c",
    "karcher",
    "knots",
    "layer_swap",
    "linear",
    "lines",
    "model_stock",
    "multislerp",
    "nearswap",
    "nuslerp",
    "opcm",
    "pareto",
    "passthrough",
    "pcb",
    "ram",
    "ramplus_tl",
    "regmean",
    "robust_signatures",
    "sce",
    "skillpack",
    "slerp",
    "tall_masks",
    "task_arithmetic",
    "ties",
    "tsv_m",
    "twin_merging",
    "unconstrained",
    "variance_corrected",
    "wudi",
]
