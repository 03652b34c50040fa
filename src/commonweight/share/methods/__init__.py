"""One file per sharing method: options and a layout. Adding one: the file, its name in this list, its test."""

from ..registry import Method, available, get, layout_of, resolve
from .recursive import Recursive

__all__ = ["Method", "Recursive", "available", "get", "layout_of", "resolve"]
