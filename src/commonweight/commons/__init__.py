"""The store on disk: pools written once, whoever reads them; tenants as small manifests that point at them."""

from .diff import Diff
from .listing import Record
from .manifest import Entry, Manifest, Ref
from .store import Commons, Freed
from .verify import Problem

__all__ = ["Commons", "Diff", "Entry", "Freed", "Manifest", "Problem", "Record", "Ref"]
