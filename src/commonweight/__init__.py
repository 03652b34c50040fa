"""commonweight: weights held in common."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import adapt, compare, exchange, lifelong, merge, methods, serve, share
    from .adapt import Classifier
    from .commons import Commons
    from .core import CommonweightError, Plan, Pool, Site
    from .host import Host, Tenant
    from .methods import plan
    from .serve import Answer, Encoder, Engine, Request

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Classifier",
    "Commons",
    "CommonweightError",
    "Encoder",
    "Engine",
    "Host",
    "Plan",
    "Pool",
    "Request",
    "Site",
    "Tenant",
    "__version__",
    "adapt",
    "compare",
    "exchange",
    "lifelong",
    "merge",
    "methods",
    "plan",
    "serve",
    "share",
]

_HOMES = {
    "Answer": "serve",
    "Classifier": "adapt.classifier",
    "Commons": "commons",
    "CommonweightError": "core",
    "Encoder": "serve",
    "Engine": "serve",
    "Host": "host",
    "Plan": "core",
    "Pool": "core",
    "Request": "serve",
    "Site": "core",
    "Tenant": "host",
    "plan": "methods",
}
_FOLDERS = {
    "adapt",
    "builder",
    "address",
    "bind",
    "commons",
    "compare",
    "core",
    "exchange",
    "lifelong",
    "formats",
    "host",
    "merge",
    "methods",
    "serve",
    "share",
}


def __getattr__(name: str) -> Any:
    """Imports on first use: the command line answers --help without loading torch."""
    if name in _FOLDERS:
        return import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
