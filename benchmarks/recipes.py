"""Every method at its defaults on trec: none may fall to chance (six classes; the commonest is 27.6 % of the test).

python -m benchmarks.recipes
"""

from __future__ import annotations

from collections import Counter

import commonweight as cw
from commonweight.adapt import adapt, evaluate, open_host, read

from .accuracy import DATA
from .harness import store
from .shapes import minilm_folder


def main() -> list[dict]:
    host = open_host(minilm_folder())
    train, dev, test = (read(DATA / f"trec.{part}.tsv") for part in ("train", "dev", "test"))
    chance = 100 * max(Counter(r["label"] for r in test).values()) / len(test)
    rows = []
    for method in cw.methods.available():
        result = adapt(host, "t", train, method=method, dev_rows=dev, seed=0)
        found = 100 * evaluate(host, "t", test)["accuracy"]
        rows.append(
            {
                "what": f"accuracy on trec at defaults, {method}",
                "unit": "percent",
                "target": None,
                "ours": round(found, 1),
                "chance": round(chance, 1),
                "trainable": result.tenant.count(),
                "bytes": result.tenant.nbytes,
                "seconds": round(result.seconds, 1),
            }
        )
        print(rows[-1], flush=True)
        host.remove("t")
    store("recipes", rows)
    return rows


if __name__ == "__main__":
    main()
