"""What merging loads: half of its memory is torch, and nothing is added that it has no use of."""

from __future__ import annotations

import subprocess
import sys


def test_merging_loads_no_compiler():
    code = "import sys, commonweight.merge; print([m for m in ('torch._dynamo', 'numba', 'sympy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "[]\n"
