"""torch.compile of the frozen base, while a tenant is trained and measured."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec

import torch
from torch import nn

from ..core import CommonweightError
from ..host import Host
from ..host.names import named
from ..host.sites import blocks
from ..host.weights import device_of

BACKEND = "inductor"


@contextmanager
def compiled(host: Host) -> Iterator[None]:
    """Within it the stacks of the model's blocks are compiled, each as one piece.

    Embeddings in front and the head behind them are not: a loss may read the head at the scored places alone. Cost: a
    minute or so at the first step, and again where the batches' shapes begin to vary. The numbers are those without,
    up to rounding. Raises: CommonweightError where there is no compiler, or no list of blocks.
    """
    found = stacks(host.model)
    if not found:
        raise CommonweightError(
            f"{type(host.model).__name__} has no list of blocks that could be compiled; leave out compile"
        )
    check(device_of(host.model))
    for stack in found:
        stack.compile(backend=BACKEND)
    try:
        yield
    finally:
        for stack in found:
            stack._compiled_call_impl = None


def stacks(model: nn.Module) -> list[nn.Module]:
    """The modules that hold the lists of blocks: a decoder; of an encoder-decoder both."""
    inner = dict(named(model))
    return [inner[n] for n in dict.fromkeys(".".join(b.split(".")[:-2]) for b in blocks(model))]


def check(device: torch.device) -> None:
    """Raises: CommonweightError where torch.compile has nothing to compile with."""
    if BACKEND != "inductor":
        return
    if device.type != "cpu":
        if find_spec("triton") is None:
            raise CommonweightError("compile on a GPU needs Triton: pip install triton")
        return
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as e:
        raise CommonweightError(
            "compile on a processor needs a C++ compiler, and none was found: install g++ or clang, or name one in CXX"
        ) from e
