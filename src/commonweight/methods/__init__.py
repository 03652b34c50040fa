"""A folder for each family, a file in it for each method: options and a plan, no model.

Adding one: the file, its name in the list of its folder, its test.
"""

from . import (
    adapters,
    conditional,
    hidden_states,
    low_rank,
    mixtures,
    over,
    products,
    quantised,
    rotation,
    scaling,
    selective,
    sequences,
    shared_pools,
    side,
    spectral,
    tasks,
)
from .adapters import *  # noqa: F403
from .beside import Beside, beside
from .conditional import *  # noqa: F403
from .head import head, head_of
from .hidden_states import *  # noqa: F403
from .low_rank import *  # noqa: F403
from .mixtures import *  # noqa: F403
from .over import *  # noqa: F403
from .products import *  # noqa: F403
from .quantised import *  # noqa: F403
from .registry import METHODS, OVER, Method, available, either, families, get, method, plan, resolve
from .rotation import *  # noqa: F403
from .scaling import *  # noqa: F403
from .selective import *  # noqa: F403
from .sequences import *  # noqa: F403
from .shared_pools import *  # noqa: F403
from .shown import Shown
from .side import *  # noqa: F403
from .spectral import *  # noqa: F403
from .tasks import *  # noqa: F403

__all__ = [
    "METHODS",
    "OVER",
    "Beside",
    "Method",
    "Shown",
    "available",
    "beside",
    "either",
    "families",
    "get",
    "head",
    "head_of",
    "method",
    "plan",
    "resolve",
]
__all__ += adapters.__all__
__all__ += conditional.__all__
__all__ += hidden_states.__all__
__all__ += low_rank.__all__
__all__ += mixtures.__all__
__all__ += over.__all__
__all__ += products.__all__
__all__ += quantised.__all__
__all__ += rotation.__all__
__all__ += scaling.__all__
__all__ += selective.__all__
__all__ += sequences.__all__
__all__ += shared_pools.__all__
__all__ += side.__all__
__all__ += spectral.__all__
__all__ += tasks.__all__
