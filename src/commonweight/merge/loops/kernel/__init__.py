"""Loops over blocks of numbers, for numba. Nothing here knows of torch or of the rest of the library.

Pointers stand where NumPy has arrays, and every function is inlined: so the machine code needs nothing of numba's when
it runs. Integers that are no index are of 32 or 64 bits by name, since a plain Python number is of 64.
"""

from .competing import compete, score
from .counting import count
from .merging import merge
from .ranking import rank
from .sorting import choose, runs
from .squaring import size, square

LOOPS = {
    "merge": merge, "count": count, "square": square, "size": size, "rank": rank, "score": score, "compete": compete,
    "runs": runs, "choose": choose,
}  # fmt: skip
