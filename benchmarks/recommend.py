"""Recommenders whose tables are 8 times smaller: who shares rows how, on MovieLens 100K.

python -m benchmarks.recommend FOLDER      # the folder with ml-100k.inter, .user and .item

The files lie in the package recbole (``recbole/dataset_example/ml-100k``); they may be used for research alone.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import torch

from commonweight.share.recommend import Clustered, Feature, Recommender, Unified, auc, clusters, numbered, train

from .harness import store

SEEDS, WIDTH, EPOCHS, SMALLER = (0, 1, 2), 16, 5, 8


def table(path: Path) -> list[dict[str, str]]:
    """Rows of one of RecBole's files: tabs between the cells, ``name:type`` above them."""
    head, *lines = path.read_text(encoding="utf-8").splitlines()
    names = [cell.partition(":")[0] for cell in head.split("\t")]
    return [dict(zip(names, line.split("\t"))) for line in lines]


def coded(values: list[str]) -> tuple[torch.Tensor, int]:
    places = {v: i for i, v in enumerate(sorted(set(values)))}
    return torch.tensor([places[v] for v in values]), len(places)


class Data:
    """pairs (n, 2) of user and item; columns: {feature: (0 of the user or 1 of the item, its value for each)}."""

    def __init__(self, folder: Path):
        users, items = table(folder / "ml-100k.user"), table(folder / "ml-100k.item")
        at = [{row[key]: i for i, row in enumerate(rows)} for rows, key in ((users, "user_id"), (items, "item_id"))]
        seen = table(folder / "ml-100k.inter")
        self.pairs = torch.tensor([[at[0][r["user_id"]], at[1][r["item_id"]]] for r in seen])
        self.columns, self.sizes = {}, {"user": len(users), "item": len(items)}
        for side, rows, names in (
            (0, users, ("age", "gender", "occupation", "zip_code")),
            (1, items, ("release_year", "class")),
        ):
            for name in names:
                values, size = coded([row[name] for row in rows])
                self.columns[name], self.sizes[name] = (side, values), size

    def all(self, users: torch.Tensor, items: torch.Tensor) -> dict[str, torch.Tensor]:
        more = {n: values[(users, items)[side]] for n, (side, values) in self.columns.items()}
        return {"user": users, "item": items, **more}


def two(users: torch.Tensor, items: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"user": users, "item": items}


def modulo(sizes: dict[str, int], rows: dict[str, int]) -> Clustered:
    return Clustered({n: torch.arange(size) % rows[n] for n, size in sizes.items()}, WIDTH)


def measured(data: Data, seed: int) -> dict[str, tuple[int, float]]:
    """{what: (numbers of the tables, AUC against 50 items that the user has not met)}."""
    g = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(data.pairs), generator=g)
    cut = len(order) * 4 // 5
    seen, rest = data.pairs[order[:cut]], data.pairs[order[cut:]]
    met = torch.zeros(data.sizes["user"], data.sizes["item"], dtype=torch.bool)
    met[data.pairs[:, 0], data.pairs[:, 1]] = True
    some = rest[:5000]
    free = (~met)[some[:, 0]].float()
    others = torch.multinomial(free, 50, replacement=True, generator=g)
    ids = {n: data.sizes[n] for n in ("user", "item")}
    found = clusters(*seen.T.tolist(), resolution=6.0, seed=seed)
    maps = {n: numbered(f, ids[n]) for n, f in zip(ids, found)}
    rows = {n: int(m.max()) + 1 for n, m in maps.items()}
    every = sum(data.sizes.values())
    share = {n: max(1, size // SMALLER) for n, size in data.sizes.items()}
    half = {n: Feature(size, 2) for n, size in data.sizes.items()}
    sides = {
        "users and items: a row each": (modulo(ids, ids), two),
        "users and items: GraphHash": (Clustered(maps, WIDTH), two),
        "users and items: as many rows, id mod rows": (modulo(ids, rows), two),
        "users and items: as many rows, Unified": (
            Unified({n: Feature(s, 2) for n, s in ids.items()}, 2 * sum(rows.values()), WIDTH // 2), two,
        ),
        "eight features: a row each": (modulo(data.sizes, data.sizes), data.all),
        "eight features: Unified, an eighth": (Unified(half, 2 * (every // SMALLER), WIDTH // 2), data.all),
        "eight features: Unified, stable": (
            Unified(half, 2 * (every // SMALLER), WIDTH // 2, fold="stable"), data.all,
        ),
        "eight features: a table each, value mod rows": (modulo(data.sizes, share), data.all),
    }  # fmt: skip
    out = {}
    for what, (tables, features) in sides.items():
        torch.manual_seed(seed)
        model = Recommender(tables, hidden=64, pair=("user", "item"))
        train(model, features, seen, data.sizes["item"], epochs=EPOCHS, seed=seed)
        out[what] = sum(p.numel() for p in tables.parameters()), auc(model, features, some, others)
    return out


def main(folder: str) -> list[dict]:
    data = Data(Path(folder))
    runs = [measured(data, seed) for seed in SEEDS]
    rows = []
    for what in runs[0]:
        scores = [run[what][1] for run in runs]
        numbers = round(statistics.mean(run[what][0] for run in runs))
        rows.append(
            {"what": what, "numbers": numbers, "auc": round(statistics.mean(scores), 4),
             "spread": [round(min(scores), 4), round(max(scores), 4)]}
        )  # fmt: skip
    store("recommend", rows)
    return rows


if __name__ == "__main__":
    for row in main(sys.argv[1]):
        print(row)
