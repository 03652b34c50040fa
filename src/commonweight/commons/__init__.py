"""The store on disk: pools written once, whoever reads them; tenants as small manifests that point at them."""

from .diff import Diff
from .manifest import Manifest, Ref
from .store import Commons, Freed, Record
from .verify import Problem

__all__ = ["Commons", "Diff", "Freed", "Manifest", "Problem", "Record", "Ref"]
