"""Clusters of interactions as rows: what Louvain finds, tables, and a recommender that learns from them."""

import pytest
import torch

from commonweight import CommonweightError
from commonweight.share.recommend import Clustered, Feature, Recommender, Unified, auc, clusters, numbered, train


def bicliques(n=2, users=6, items=5):
    return [(g * users + u, g * items + i) for g in range(n) for u in range(users) for i in range(items)]


def modularity(pairs, of):
    """Of a bipartite graph, pair by pair (Barber)."""
    m, (us, its) = len(pairs), of
    du = {u: sum(a == u for a, _ in pairs) for u in us}
    di = {i: sum(b == i for _, b in pairs) for i in its}
    held = set(pairs)
    return sum(((u, i) in held) - du[u] * di[i] / m for u in us for i in its if us[u] == its[i]) / m


def test_two_bicliques_are_two_clusters():
    users, items = clusters(*zip(*bicliques()))
    assert set(users.values()) == set(items.values()) == {0, 1}
    assert [users[u] for u in range(12)] == [0] * 6 + [1] * 6 and [items[i] for i in range(10)] == [0] * 5 + [1] * 5


def test_the_partition_is_better_than_a_random_one():
    g = torch.Generator().manual_seed(0)
    pairs = [p for p in bicliques(3) if torch.rand((), generator=g) < 0.7]
    pairs = sorted(
        {
            *pairs,
            *((int(torch.randint(18, (), generator=g)), int(torch.randint(15, (), generator=g))) for _ in range(20)),
        }
    )
    users, items = clusters(*zip(*pairs), seed=1)
    assert clusters(*zip(*pairs), seed=1) == (users, items)
    n = max(users.values()) + 1
    random = {u: u % n for u in users}, {i: i % n for i in items}
    assert modularity(pairs, (users, items)) > 0.3 > modularity(pairs, random)
    assert max(clusters(*zip(*pairs), resolution=30.0)[0].values()) > n


def test_who_was_never_seen_has_a_row_alone():
    assert numbered({0: 0, 2: 1, 3: 0}, 6).tolist() == [0, 2, 1, 0, 3, 4]


def test_tables():
    tables = Clustered({"user": torch.tensor([0, 1, 0]), "item": torch.tensor([[0, 0, 1], [1, 0, 0]])}, 4)
    at = {"user": torch.tensor([2, 1]), "item": torch.tensor([0, 2])}
    out, t = tables(at), tables.tables
    assert torch.equal(out["user"], t["user"][[0, 1]])
    assert torch.equal(out["item"], torch.stack([t["item"][0] + t["item"][1], t["item"][1] + t["item"][0]]))
    plain = Clustered({"user": torch.arange(9)}, 4)
    values = torch.tensor([3, 8, 0])
    assert torch.equal(plain({"user": values})["user"], torch.nn.functional.embedding(values, plain.tables["user"]))
    again = Clustered({"user": torch.zeros(3).long(), "item": torch.zeros(2, 3).long()}, 4)
    with pytest.raises(RuntimeError, match="size mismatch"):
        again.load_state_dict(tables.state_dict())
    assert {"map_user", "map_item"} <= tables.state_dict().keys()


def features(users, items):
    return {"user": users, "item": items}


@pytest.mark.parametrize("kind", ["clustered", "unified"])
def test_a_recommender_learns(kind):
    pairs = torch.tensor(bicliques(2, 12, 10))
    g = torch.Generator().manual_seed(0)
    order = torch.randperm(len(pairs), generator=g)
    seen, rest = pairs[order[:180]], pairs[order[180:]]
    if kind == "clustered":
        users, items = clusters(*seen.T.tolist())
        tables = Clustered({"user": numbered(users, 24), "item": numbered(items, 20)}, 4)
        assert len(tables.tables["user"]) == 2
    else:
        tables = Unified({"user": Feature(24, 2), "item": Feature(20, 2)}, 60, 4)
    torch.manual_seed(0)
    model = Recommender(tables, hidden=16, pair=("user", "item"))
    losses = train(model, features, seen, 20, epochs=60, batch=60, lr=0.02)
    assert losses[-1] < losses[0]
    others = (rest[:, 1:] + 10) % 20  # items of the other half
    assert auc(model, features, rest, others) > 0.9


def test_auc_by_hand():
    class Two(torch.nn.Module):
        def forward(self, values):
            return values["item"].float()

    pairs, others = torch.tensor([[0, 3], [1, 1]]), torch.tensor([[2, 3], [0, 5]])
    assert auc(Two(), features, pairs, others) == (1 + 0.5 + 1 + 0) / 4


def test_what_it_refuses():
    with pytest.raises(CommonweightError, match="wanted one user and one item a row"):
        clusters([1], [])
