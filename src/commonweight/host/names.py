"""Names that are safe as file names everywhere: see `commonweight.core.safe`."""

from ..core import safe

__all__ = ["safe"]
