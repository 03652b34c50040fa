"""Quality at an eighth of the parameters: MoS (equivalent rank 2) against LoRA at rank 16, five tasks, three seeds.

1,000 training rows a task, the best state on 200 dev rows, accuracy on the 377 to 500 test rows of demo/data.

    python -m benchmarks.accuracy
"""

from __future__ import annotations

import statistics
from pathlib import Path

from commonweight.adapt import adapt, evaluate, open_host, read

from .harness import store
from .shapes import minilm_folder

DATA = Path(__file__).parents[1] / "demo" / "data"
TASKS = ("trec", "sst2", "sst5", "mr", "cr")
SEEDS = (0, 1, 2)
SIDES = {  # learning rates: the best of those in docs/LOG.md for each side
    "lora": ("lora", {"rank": 16}, 1e-3),
    "mos": ("mos", {"rank": 16, "budget": 2}, 4e-3),
}


def main() -> list[dict]:
    host = open_host(minilm_folder())
    score: dict[str, dict[tuple[str, int], float]] = {side: {} for side in SIDES}
    params: dict[str, int] = {}
    rows = []
    for task in TASKS:
        train, dev, test = (read(DATA / f"{task}.{part}.tsv") for part in ("train", "dev", "test"))
        for seed in SEEDS:
            for side, (method, options, lr) in SIDES.items():
                result = adapt(host, "t", train, method=method, options=options, dev_rows=dev, seed=seed, lr=lr)
                score[side][task, seed] = 100 * evaluate(host, "t", test)["accuracy"]
                params[side] = sum(
                    p.numel for n, p in result.tenant.plan.pools.items() if p.train and not n.startswith("head")
                )
                host.remove("t")
        mean = {s: statistics.mean(score[s][task, seed] for seed in SEEDS) for s in SIDES}
        diffs = [score["mos"][task, s] - score["lora"][task, s] for s in SEEDS]
        rows.append(
            {
                "what": f"accuracy, {task}, MoS - LoRA r16, {len(test)} test rows, 3 seeds",
                "unit": "points",
                "target": None,
                "ours": round(mean["mos"], 2),
                "theirs": round(mean["lora"], 2),
                "difference": round(statistics.mean(diffs), 2),
                "spread": [round(min(diffs), 2), round(max(diffs), 2)],
            }
        )
        print(rows[-1], flush=True)
    by_seed = [statistics.mean(score["mos"][t, s] - score["lora"][t, s] for t in TASKS) for s in SEEDS]
    rows.append(
        {
            "what": f"accuracy, mean of five tasks, MoS ({params['mos']:,}) - LoRA r16 ({params['lora']:,}), 3 seeds",
            "unit": "points",
            "target": -0.5,
            "difference": round(statistics.mean(by_seed), 2),
            "ours": round(statistics.mean(score["mos"].values()), 2),
            "theirs": round(statistics.mean(score["lora"].values()), 2),
            "spread": [round(min(by_seed), 2), round(max(by_seed), 2)],
        }
    )
    store("accuracy", rows)
    return rows


if __name__ == "__main__":
    print(main()[-1])
