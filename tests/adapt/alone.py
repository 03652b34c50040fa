"""Rows packed into sequences beside the same rows one by one."""

from __future__ import annotations

from typing import Any

import pytest
import torch


def packed_as_alone(host: Any, name: str, task: Any, examples: list[Any]) -> list[Any]:
    """The sequences: their loss, their number of scored tokens and their gradients are the sums of the rows'."""
    tenant = host[name]

    def run(some: list[Any]) -> tuple[float, int, list[torch.Tensor]]:
        batch = task.collate(some)
        with host.route(name):
            loss = task.loss(host.model, batch) * task.items(batch)
        loss.backward()
        grads = [p.grad.clone() for p in tenant.parameters()]
        for p in tenant.parameters():
            p.grad = None
        return loss.item(), task.items(batch), grads

    alone = [run([e]) for e in examples]
    sequences = task.pack(examples)
    total, items, grads = run(sequences)
    assert items == sum(n for _, n, _ in alone)
    assert total == pytest.approx(sum(loss for loss, *_ in alone), rel=1e-6)
    for k, g in enumerate(grads):
        torch.testing.assert_close(g, sum(one[k] for *_, one in alone), atol=1e-5, rtol=1e-4)
    return sequences
