"""What `merging_quality` merges: the tasks, the seeds, which methods are in the table and why others are not."""

from __future__ import annotations

from pathlib import Path

from commonweight import merge

ROOT = Path(__file__).parents[1]
DATA, CACHE = ROOT / "demo" / "data", ROOT / ".cache" / "merging"
TASKS = ("trec", "sst2", "sst5", "mr", "cr")
SEEDS = (0, 1, 2)
KINDS = {"full": ("full", {}), "lora": ("lora", {"rank": 16})}
FACTORS = (0.3, 0.6, 1.0, 1.6)
NOT_HERE = {
    "arcee_fusion": "puts one model into its base",
    "nearswap": "puts one model into its base",
    "passthrough": "copies one model",
    "slerp": "is defined between two models",
    "nuslerp": "is defined between two models",
    "layer_swap": "takes blocks of two models",
    "robust_signatures": "patches one model with others, and does not combine tasks",
}
ANCHOR = "tsv_m"  # of `bayesian`, which corrects another merge
ROUTED = ("twin_merging", "skillpack")  # here by an ideal router: one model a task
PER_TASK = ("tall_masks", "emr", *ROUTED)
ROWS = 64  # of statistics, per task
MEASURED = {"dev": 100, "test": 250}  # rows a task


def names() -> list[str]:
    """Every method that makes one model of five, or one a task."""
    return [n for n in merge.available() if n not in NOT_HERE]
