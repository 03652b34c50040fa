from .linear import Gather, Hashed, Row, Whole, Window, fold

WHOLE = Whole()

__all__ = ["WHOLE", "Gather", "Hashed", "Row", "Whole", "Window", "fold"]
