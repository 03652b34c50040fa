"""What a reader does with what it read: one small file per family of pure functions."""

from .activated import Activated
from .ahead import KeysValues, ProjectedKeysValues, ProjectedTokens, PromptPool, SoftTokens
from .anchored import Anchored
from .beside_trunk import Guidance, Ladder, OverDepth, narrow
from .bottleneck import Bottleneck, Parallel, Weighed
from .branch import Before, Mapped, Projected, Step, Times
from .channels import ChannelMix, StreamMix
from .coded import Coded
from .contrast import Contrast, Doubled, Twice
from .copied import Copy
from .depth import Exit, Expected, Expecting, ExpertChoice, Halt, Place, TokenChoice
from .entries import Entries, Turned, turned
from .experts import Experts
from .factors import added, added_grouped
from .first import First
from .gated_part import GatedPart
from .givens import Givens
from .guided import Guided
from .intervene import Edit
from .keys import ProductKeys
from .kron import Kron
from .low_rank import LowRank, active
from .magnitude import Magnitude
from .masked import Masked
from .mixture import Mixture
from .one_expert import OneExpert
from .product import Product
from .pruned import Pruned
from .quantised import Elastic, Requantised
from .queries import Answered
from .random_bases import RandomBases
from .replace import Replace
from .rotate import Butterfly, RotateBlocks, RotatePairs
from .routed import Drawn, Skills
from .scale import ScaleInput, ScaleOutput
from .second_head import Lends, SecondHead
from .sequential import Hydra
from .shift import BiasShift, Classify, Shift
from .shortcut import Shortcut
from .skipped import Instead, SoftTopK, TokenSelect
from .streams import Gathered, Prefixes, Streams
from .thin import ThinHead, ThinTable
from .thinned import Thinned
from .unread import Unread

__all__ = [
    "Activated",
    "Anchored",
    "Answered",
    "Before",
    "BiasShift",
    "Bottleneck",
    "Butterfly",
    "ChannelMix",
    "Classify",
    "Coded",
    "Contrast",
    "Copy",
    "Doubled",
    "Drawn",
    "Edit",
    "Elastic",
    "Entries",
    "Exit",
    "Expected",
    "Expecting",
    "ExpertChoice",
    "Experts",
    "First",
    "GatedPart",
    "Gathered",
    "Givens",
    "Guidance",
    "Guided",
    "Halt",
    "Hydra",
    "Instead",
    "KeysValues",
    "Kron",
    "Ladder",
    "Lends",
    "LowRank",
    "Magnitude",
    "Mapped",
    "Masked",
    "Mixture",
    "OneExpert",
    "OverDepth",
    "Parallel",
    "Place",
    "Prefixes",
    "Product",
    "ProductKeys",
    "Projected",
    "ProjectedKeysValues",
    "ProjectedTokens",
    "PromptPool",
    "Pruned",
    "RandomBases",
    "Replace",
    "Requantised",
    "RotateBlocks",
    "RotatePairs",
    "ScaleInput",
    "ScaleOutput",
    "SecondHead",
    "Shift",
    "Shortcut",
    "Skills",
    "SoftTokens",
    "SoftTopK",
    "Step",
    "StreamMix",
    "Streams",
    "ThinHead",
    "ThinTable",
    "Thinned",
    "Times",
    "TokenChoice",
    "TokenSelect",
    "Turned",
    "Twice",
    "Unread",
    "Weighed",
    "active",
    "added",
    "added_grouped",
    "narrow",
    "turned",
]
