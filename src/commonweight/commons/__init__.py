"""The store on disk: pools written once, whoever reads them; tenants as small manifests that point at them."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .diff import Diff
from .listing import Record
from .manifest import Entry, Manifest, Ref
from .store import Commons, Freed
from .verify import Problem

if TYPE_CHECKING:
    from .adapters import Import, Imported, import_peft
    from .descriptions import Descriptions, Found, describe, encoder, find
    from .subspace import Subspace, fit

__all__ = [
    "Commons",
    "Descriptions",
    "Diff",
    "Entry",
    "Found",
    "Freed",
    "Import",
    "Imported",
    "Manifest",
    "Problem",
    "Record",
    "Ref",
    "Subspace",
    "describe",
    "encoder",
    "find",
    "fit",
    "import_peft",
]

# These need torch, whose import takes longer than any other command of the store.
_HOMES = {
    **dict.fromkeys(("Import", "Imported", "import_peft"), "adapters"),
    **dict.fromkeys(("Subspace", "fit"), "subspace"),
    **dict.fromkeys(("Descriptions", "Found", "describe", "encoder", "find"), "descriptions"),
}


def __getattr__(name: str) -> Any:
    """Imports on first use."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    return value
