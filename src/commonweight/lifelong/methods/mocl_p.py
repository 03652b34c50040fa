"""MoCL-P: prefixes of all tasks so far, each as far as a row is like its task; a new one that adds little goes."""

from __future__ import annotations

from typing import Any, Literal

from torch.nn import functional as F

from ...core import config, option
from ..asks import Carried, Learned, Run, Stage, Train, body
from ..features import queries
from ..registry import method


@config
class MoCLP:
    tokens: int = option(16, "keys and values of a task's prefix", ge=1)
    threshold: float = option(0.25, "a task whose weight is less keeps no prefix of its own", ge=-1, le=1)
    pull: float = option(1.0, "weight of 1 - cos(row, the task's vector) in the loss", ge=0)
    query: Literal["base", "embeddings"] = option("base", "what a row is, as in prompt-pool; the paper has embeddings")


def adapter(config: MoCLP) -> tuple[str, dict[str, Any]]:
    more = {} if config.query == "base" else {"query": config.query}
    return "prompt-pool", {"read": "weighed", "prompts": 1, "tokens": config.tokens, "pull": config.pull, **more}


@method(
    "mocl-p",
    MoCLP,
    paper="Learn it or Leave it: Module Composition and Pruning for Continual Learning, arXiv 2406.18708",
    adapter=adapter,
    carries="a prefix and a vector for each task that kept them",
    grows="a prefix in every attention and a vector, unless its weight is small; a head",
    id=122,
    tasks=("classify",),
)
def stage(at: Stage, had: Carried) -> Run:
    """P(x) = sum over the tasks that kept a prefix, and the new one m, of cos(x, v_i) P_i; P_m and v_m train, the rest
    is held. Loss + pull * mean over rows of 1 - cos(x, v_m). Where the weight of m is under the threshold, its prefix
    and vector go, and its head alone is trained again on the others' sum.

    An earlier task is answered by what was there when it was learned: it forgets nothing. Cost: as `prompt-pool`.
    Source: arXiv 2406.18708; its predecessor's code, github.com/boschresearch/MoCL-NAACL-2024 @e8d4322 (the paper's own
    repository is gone), with weight 1 for the matching (its `matching_loss_v2`) and cosines as they are (its
    `direct_compose`; its scripts for BERT take a softmax of 8 times them), and the threshold .25 of its longest stream.
    Ours: a task's weight, which neither states for a whole task, is the mean of cos(x, v_m) over its dev rows, else its
    rows; the second training of the head; what `prompt-pool` says of the query.
    """
    stays = list(had.facts.get("stays", ()))
    old: Learned | None = had.tenants[stays[-1]] if stays else None
    n, held = len(stays), frozenset(body(old) if old else ())
    trained = yield Train(options={"parts": n + 1}, start=old, still=held)
    mine = trained.tenants[at.name]
    rows = queries(at.host, at.task, at.dev or at.train, at.recipe.eval_rows, at.config.query)
    weight = float(F.cosine_similarity(rows, mine.pools[f"pool.K{n}"].cpu().float(), dim=1).mean())
    if old is not None and weight < at.config.threshold:
        trained = yield Train(options={"parts": n}, start=old, still=held)
        mine = trained.tenants[at.name]
    else:
        stays.append(at.name)
    facts = {"stays": stays, "weights": {**had.facts.get("weights", {}), at.name: weight}}
    return had._replace(tenants={**had.tenants, at.name: mine}, facts=facts)
