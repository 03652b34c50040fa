"""One table for all features: the hash by whole numbers, rows of their own where there is room, salts, gradients."""

import pytest
import torch

from commonweight import CommonweightError
from commonweight.share.recommend import Feature, Unified
from tests.share.methods.test_hashed import splitmix

FEATURES = {"user": Feature(50, 2), "item": Feature(30, 3), "age": Feature(7)}
VALUES = {"user": torch.tensor([0, 49, 7]), "item": torch.tensor([5, 5, 29]), "age": torch.tensor([1, 2, 6])}


@pytest.mark.parametrize("tables", [1, 2])
def test_the_lookups_by_hand(tables):
    model = Unified(FEATURES, 11, 4, tables=tables, seed=3)
    out = model(VALUES)
    k = 0
    for name, feature in FEATURES.items():
        for i, value in enumerate(VALUES[name].tolist()):
            want = []
            for chunk in range(k, k + feature.chunks):
                row = (splitmix(value, 3 * 2**20 + chunk) >> 1) % 11
                want.append(model.table[chunk % tables, row])
            assert torch.equal(out[name][i], torch.cat(want))
        k += feature.chunks
    assert model.widths == {"user": 8, "item": 12, "age": 4} and model.table.numel() == tables * 11 * 4


def test_a_vector_of_the_hash():
    assert Unified({"f": Feature(9)}, 1000, 1).rows(0, torch.arange(3)).tolist() == [959, 424, 247]


@pytest.mark.parametrize("tables", [1, 3])
def test_with_room_for_all_each_value_has_a_row_of_its_own(tables):
    every = [f.size for f in FEATURES.values() for _ in range(f.chunks)]
    most = max(sum(every[t::tables]) for t in range(tables))
    model = Unified(FEATURES, most, 2, tables=tables, fold="stable")
    seen = [
        (k % tables, row)
        for name, chunks in model.chunks.items()
        for k in chunks
        for row in model.rows(k, torch.arange(FEATURES[name].size)).tolist()
    ]
    assert len(set(seen)) == len(seen) == sum(every)
    half = Unified(FEATURES, most // 2, 2, tables=tables, fold="stable")
    loads = torch.zeros(tables, most // 2)
    for name, chunks in half.chunks.items():
        for k in chunks:
            loads[k % tables].index_add_(
                0, half.rows(k, torch.arange(FEATURES[name].size)), torch.ones(FEATURES[name].size)
            )
    assert all(int(row.max() - row.min()) <= 1 for row in loads) and loads.max() >= 2


def test_no_two_features_read_alike():
    model = Unified({"a": Feature(200, 2), "b": Feature(200)}, 64, 2)
    rows = [model.rows(k, torch.arange(200)) for k in range(3)]
    assert all(float((rows[a] == rows[b]).float().mean()) < 0.1 for a in range(3) for b in range(a))


def test_the_gradient_of_a_row_is_the_sum_of_its_readers():
    model = Unified(FEATURES, 5, 3, seed=1)
    sum(v.sum() for v in model(VALUES).values()).backward()
    want = torch.zeros(5)
    for name, chunks in model.chunks.items():
        for k in chunks:
            for row in model.rows(k, VALUES[name]).tolist():
                want[row] += 1
    assert torch.equal(model.table.grad, want[None, :, None].expand(1, 5, 3))


@pytest.mark.parametrize("fold", ["hash", "stable"])
def test_a_state_dict_is_enough(fold):
    a, b = (Unified(FEATURES, 9, 2, fold=fold, seed=1) for _ in range(2))
    with torch.no_grad():
        a.table.normal_()
    assert list(a.state_dict()) == ["table"]
    b.load_state_dict(a.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(a(VALUES).values(), b(VALUES).values()))


def test_what_it_refuses():
    for features, rows in (({}, 3), (FEATURES, 0), ({"a": Feature(3, 0)}, 3)):
        with pytest.raises(CommonweightError, match="wanted at least 1 of each"):
            Unified(features, rows, 4)
