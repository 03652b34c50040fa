#!/usr/bin/env bash
# `torch.no_grad` around an `await` turns gradients off for other tasks, and in the end for the whole thread.
#
# Versions: torch 2.13.0 (Python's asyncio).
# What runs: two tasks, each `with torch.no_grad(): await ...`, and a third one that never asks for no_grad.
# Expected: gradient mode belongs to the task, as a context variable does; after the last task it is what it was.
# What came: the mode is the thread's. The third task finds gradients off while a neighbour waits. The two blocks close in
#   the order in which they opened, so the second one puts back what it found: off. No block is open any more and
#   gradients stay off in this thread. Nothing is said until a backward pass fails somewhere else.
# Output:
#   a task without no_grad sees gradients on: False
#   gradients on after all tasks ended: False
#   a loss made afterwards has a gradient: False
# Who it hurts: servers that run a model in an event loop and train, or hand work to a trainer, in the same thread.
# Our test: tests/host/test_route_follows.py (a route belongs to its task; it must not follow torch's example).
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --no-compile torch==2.13.0
"$work/venv/bin/python" - <<'EOF'
import asyncio

import torch


async def asks():
    with torch.no_grad():
        await asyncio.sleep(0)


async def asks_nothing():
    return torch.is_grad_enabled()


async def main():
    return (await asyncio.gather(asks(), asks_nothing(), asks()))[1]


assert torch.is_grad_enabled()
neighbour = asyncio.run(main())
after = torch.is_grad_enabled()
loss = (torch.ones(2, requires_grad=True) * 2).sum()
print("a task without no_grad sees gradients on:", neighbour)
print("gradients on after all tasks ended:", after)
print("a loss made afterwards has a gradient:", loss.requires_grad)
raise SystemExit(neighbour or after or loss.requires_grad)
EOF
