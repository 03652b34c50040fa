"""What Flower's own strategies make of the same replies."""

import pytest
import torch

from commonweight.exchange.methods.median import middle
from commonweight.exchange.methods.trimmed_mean import trimmed

pytest.importorskip("flwr")


def theirs(strategy, values):
    """One round of a strategy on clients' arrays."""
    from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict

    replies = []
    for n, value in enumerate(values):
        asked = Message(RecordDict(), n + 1, "train")
        arrays = ArrayRecord({"w": Array(value.numpy().copy())})
        content = RecordDict({"arrays": arrays, "metrics": MetricRecord({"num-examples": n + 1})})
        replies.append(Message(content, reply_to=asked))
    made, _ = strategy.aggregate_train(1, replies)
    return torch.from_numpy(made["w"].numpy().copy())


@pytest.mark.parametrize("clients", [3, 4, 7, 10])
def test_median_and_trimmed_mean_are_flowers(clients, monkeypatch):
    from flwr.serverapp.strategy import FedMedian, FedTrimmedAvg
    from flwr.supercore.task_identity import TaskIdentity

    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    g = torch.Generator().manual_seed(clients)
    values = [torch.randn(3, 5, generator=g) for _ in range(clients)]
    torch.testing.assert_close(middle(values), theirs(FedMedian(), values), rtol=1e-6, atol=1e-6)
    for share in (0.1, 0.2, 0.3):
        want = theirs(FedTrimmedAvg(beta=share), values)
        torch.testing.assert_close(trimmed(values, share), want, rtol=1e-6, atol=1e-6)
