"""GraphHash: users, and items, of one cluster of the graph of interactions read one row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...core import CommonweightError, Rng


def clusters(
    users: Sequence[int], items: Sequence[int], resolution: float = 1.0, seed: int = 0
) -> tuple[dict[int, int], dict[int, int]]:
    """(cluster of each user, cluster of each item), both numbered from 0, by Louvain on who has met what.

    Users and items are told apart: their tables are two. The number of clusters is what is found; a larger resolution
    finds more. An interaction that stands there twice weighs twice. Cost: seconds for 100,000 interactions.
    Source: GraphHash, code snap-research/GraphHash (utils.py). Differs: networkx's Louvain of the graph with edges
    from users to items, whose modularity expects d_user d_item / m for each pair, as theirs of sknetwork does; with
    a seed, where theirs has none. Raises: CommonweightError without networkx, and for no interactions.
    """
    try:
        import networkx as nx
    except ImportError as e:
        raise CommonweightError("clusters wants networkx, which torch usually brings: pip install networkx") from e
    if len(users) != len(items) or not len(users):
        raise CommonweightError(f"{len(users)} users of {len(items)} items; wanted one user and one item a row")
    graph: Any = nx.DiGraph()
    for (u, i), n in sorted(Counter(zip(map(int, users), map(int, items))).items()):
        graph.add_edge((0, u), (1, i), weight=n)
    found = sorted(map(sorted, nx.community.louvain_communities(graph, resolution=resolution, seed=seed)))
    out: tuple[dict[int, int], dict[int, int]] = {}, {}
    for side in (0, 1):
        groups = [[n for s, n in group if s == side] for group in found]
        for number, group in enumerate(g for g in groups if g):
            out[side].update(dict.fromkeys(group, number))
    return out


def numbered(found: Mapping[int, int], size: int) -> Tensor:
    """(size,) the cluster of every value 0 to size - 1; each that is not in `found` is one of its own, at the end."""
    most, out = max(found.values(), default=-1) + 1, []
    for value in range(size):
        if value in found:
            out.append(found[value])
        else:
            out.append(most)
            most += 1
    return torch.tensor(out)


class Clustered(nn.Module):
    """{feature: values (*s)} -> {feature: (*s, d)}: a table for each feature, read at maps[feature][value].

    maps: {feature: (V,), or (h, V) for h codes whose rows are summed}, row numbers from 0; saved with the model. With
    as many rows as values it is an ordinary embedding. Parameters: d for each row. A random map is `value % rows`.
    Source: GraphHash; its double_graph has two codes, summed. The tables begin with N(0, 1 / d), ours.
    """

    def __init__(self, maps: Mapping[str, Tensor], width: int, seed: int = 0):
        super().__init__()
        self.tables = nn.ParameterDict()
        for name, rows in maps.items():
            self.register_buffer(f"map_{name}", torch.atleast_2d(rows).long())
            first = Rng(seed, f"table/{name}").normal((int(rows.max()) + 1, width), width**-0.5)
            self.tables[name] = nn.Parameter(first)

    def forward(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {n: t[self.get_buffer(f"map_{n}")[:, values[n]]].sum(0) for n, t in self.tables.items()}

    @property
    def widths(self) -> dict[str, int]:
        return {name: table.shape[1] for name, table in self.tables.items()}
