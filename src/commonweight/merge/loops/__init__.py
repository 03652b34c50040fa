"""Compiled loops: a pass of a merge at once, with the bits of the method itself.

registry/steps.py says what a pass does, as data beside the method. kernel/ has the loops in the part of Python that
numba compiles; build.py makes machine code of them, once for a machine, and load.py takes it in, without numba.
merging.py and rounds.py call them on pieces of tensors. Where anything of that is missing, or a configuration has no
loop, the method's own form works.
"""
