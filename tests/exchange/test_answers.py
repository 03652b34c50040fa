"""Answers that wait for the end of a round lie in a file from 4 MB on, and are the same."""

import torch

from commonweight.exchange.answers import Answers, InOrder
from commonweight.exchange.message import Facts, Part, pack


def test_what_is_over_lies_in_a_file(monkeypatch):
    monkeypatch.setattr("commonweight.exchange.answers.MOST", 1000)
    table, answers = {"a": Part((100,))}, Answers()
    for c in (2, 0, 1):
        answers.put(
            c, 5 + c, pack(Facts("m", "r", "b", 0, c, 5 + c), {"a": torch.full((100,), float(c))}, table), table
        )
    assert answers.file._rolled and len(answers) == 3
    for c, reply in enumerate(InOrder(answers)):
        assert (reply.client, reply.rows) == (c, 5 + c) and torch.equal(
            reply.tensors["a"], torch.full((100,), float(c))
        )
