"""Which client has which rows."""

import pytest
import torch

from commonweight.core import CommonweightError, Rng
from commonweight.exchange import split
from commonweight.exchange.splits import known, log_gammas, sampled

ROWS = [{"text": f"t{i}", "label": f"l{i % 3}", "who": f"p{i % 7}"} for i in range(120)]


def labels(places):
    return [len({ROWS[i]["label"] for i in mine}) for mine in places]


@pytest.mark.parametrize("spec", ["iid", "dirichlet:0.3", "dirichlet:100", "labels:2", "column:who", "files"])
def test_every_row_has_one_client(spec):
    n = None if spec in ("column:who", "files") else 11
    places = split(ROWS, n, spec, seed=4, files=[i % 5 for i in range(120)])
    assert len(places) == {"column:who": 7, "files": 5}.get(spec, 11)
    assert sorted(i for mine in places for i in mine) == list(range(120))
    assert all(mine == sorted(mine) and mine for mine in places)
    assert places == split(ROWS, n, spec, seed=4, files=[i % 5 for i in range(120)])


def test_alpha_says_how_alike_clients_are():
    few, many = (split(ROWS, 6, f"dirichlet:{a}", seed=1) for a in (0.05, 1000))
    assert sum(labels(few)) < sum(labels(many)) == 18
    assert max(map(len, many)) - min(map(len, many)) <= 3
    assert split(ROWS, 6, "dirichlet:0.3", seed=1) != split(ROWS, 6, "dirichlet:0.3", seed=2)


def test_shards_of_labels():
    assert max(labels(split(ROWS, 12, "labels:1"))) <= 2
    assert split(ROWS, 7, "column:who")[2] == list(range(2, 120, 7))


def test_as_many_clients_as_rows():
    places = split(ROWS, 120, "dirichlet:0.1")
    assert all(len(mine) == 1 for mine in places)


@pytest.mark.parametrize("alpha", [0.1, 0.5, 1.0, 3.0])
def test_gamma_numbers_have_their_mean_and_variance(alpha):
    x = log_gammas(Rng(0, f"{alpha}"), 40_000, alpha).exp()
    assert float(x.mean()) == pytest.approx(alpha, rel=0.05)
    assert float(x.var()) == pytest.approx(alpha, rel=0.1)
    assert bool((x > 0).all())


@pytest.mark.parametrize("alpha", ["1e-300", "0.0001", "0.001", "1e-2"])
def test_a_tiny_alpha_gives_a_label_to_one_client(alpha):
    """In the limit a Dirichlet draw is one of its corners; the others get the one row that everybody has."""
    for seed in range(4):
        places = split(ROWS, 16, f"dirichlet:{alpha}", seed=seed)
        large = [[i for i in mine] for mine in places if len(mine) > 1]
        assert 1 <= len(large) <= 3 + (alpha == "1e-2") * 3
        assert sum(map(len, places)) == 120


@pytest.mark.parametrize("alpha", ["1e30", "1e308"])
def test_a_huge_alpha_gives_all_clients_the_same(alpha):
    for seed in range(4):
        assert {len(mine) for mine in split(ROWS, 8, f"dirichlet:{alpha}", seed=seed)} == {15}


def test_clients_of_a_round():
    assert sampled(5, None, 3, 0) == [0, 1, 2, 3, 4]
    rounds = [sampled(100, 10, r, 0) for r in range(50)]
    assert all(len(set(r)) == 10 and r == sorted(r) for r in rounds)
    assert len({tuple(r) for r in rounds}) == 50
    counts = torch.bincount(torch.tensor([c for r in rounds for c in r]), minlength=100)
    assert 0 < int(counts.min()) + 1 and int(counts.max()) < 20


@pytest.mark.parametrize(
    ("spec", "clients", "what"),
    [
        ("dirichlet", 4, "wanted dirichlet:0.3, a number above 0"), ("dirichlet:-1", 4, "wanted dirichlet:0.3"),
        ("dirichlet:nan", 4, "wanted dirichlet:0.3"), ("labels:1.5", 4, "wanted labels:2"),
        ("labels:40", 4, "160 shards of 120 rows"), ("column:city", None, "there: label, text, who"),
        ("column:who", 4, "it makes 7 clients, not 4"), ("files", None, "wanted rows of several files"),
        ("iid", 121, "121 clients for 120 rows"), ("drichlet:0.3", 4, "did you mean 'dirichlet:0.3'"),
        ("iid", None, "wanted the number of clients"),
    ],
)  # fmt: skip
def test_what_cannot_be(spec, clients, what):
    with pytest.raises(CommonweightError, match=what):
        split(ROWS, clients, spec)


@pytest.mark.parametrize(
    "spec", ["iid:3", "files:a", "column", "column:", "dirichlet", "dirichlet:0", "labels:1.5", ""]
)
def test_a_spec_is_known_before_rows_are(spec):
    with pytest.raises(CommonweightError, match=f"split '?{spec}"):
        known(spec)
