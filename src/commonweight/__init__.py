"""commonweight: weights held in common."""

from . import methods
from .core import CommonweightError, Plan, Pool, Site
from .host import Host, Tenant
from .methods import plan

__version__ = "0.1.0"
__all__ = ["CommonweightError", "Host", "Plan", "Pool", "Site", "Tenant", "__version__", "methods", "plan"]
