"""FoldGPT: gates choose which blocks to remove; neighbours of the rest read one block's weights, norms their own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ...adapt.tasks.scored import output_layer
from ...address import WHOLE
from ...bind import Step
from ...builder import Anatomy, Layout, Unit, Weight, anatomy, build, tied
from ...core import ONES, CommonweightError, Pool, Read, Use, config, option
from .. import surveys
from ..registry import method


@config
class FoldGPT:
    keep: int | None = option(None, "blocks that stay; none: five of six", ge=1)
    group: int = option(2, "neighbours among them that read the first one's weights", ge=1)
    steps: int = option(50, "steps in which the gates are learned, each on a batch of rows", ge=1)
    lr: float = option(0.02, "learning rate of the gates", gt=0)
    polar: float = option(0.1, "weight of g (1 - g), which drives gates to 0 or 1", ge=0)
    budget: float = option(1.0, "weight of the distance between the sum of the gates and keep", ge=0)


def survey(model: Any, rows: Sequence[Any], config: FoldGPT) -> dict[str, tuple[float, ...]]:
    """A gate for each block, learned with the weights frozen: y = x + g f(x), g in [0, 1].

    Loss: cross entropy + polar sum g (1 - g) + budget |sum g - keep| / L. Cost: `steps` passes, a copy of the model.
    """
    if output_layer(model) is None:
        raise CommonweightError(f"foldgpt learns gates by a language model's loss; {type(model).__name__} has no head")
    about = anatomy(model)
    layout = tied(about, range(about.depth), lambda at, weight: None)
    gates = {f"gate.{i}": Pool((1,), ONES, dtype=about.blocks[0][0].dtype) for i in range(about.depth)}
    uses = [Use(str(i), Step(), {"g": Read(WHOLE, (f"gate.{i}",))}) for i in range(about.depth)]
    gated = build(model, layout.plus(gates, uses)).eval().requires_grad_(False)
    learned = [block.g.requires_grad_(True) for block in gated.get_submodule(about.path)]
    optimizer = torch.optim.Adam(learned, lr=config.lr)
    keep = kept(about.depth, config)
    batches = list(surveys.batches(model, rows))
    for step in range(config.steps):
        batch = batches[step % len(batches)]
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        g = torch.cat(learned)
        over = (g.sum() - keep).abs() / about.depth
        loss = gated(**batch, labels=labels).loss + config.polar * (g * (1 - g)).sum() + config.budget * over
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for one in learned:
                one.clamp_(0, 1)
    return {"gates": tuple(float(g) for g in torch.cat(learned).detach())}


def kept(depth: int, config: FoldGPT) -> int:
    return config.keep or max(1, round(depth * 5 / 6))


@method(
    "foldgpt",
    FoldGPT,
    paper="FoldGPT: Simple and Effective Large Language Model Compression Scheme, arXiv 2407.00928",
    shares="blocks of a group of neighbours, after the least needed ones are removed; norms are each depth's own",
    survey=survey,
    healing={"tail": 2},
    sizes=lambda depth: [{"keep": max(1, depth * 5 // 6)}, {"keep": max(1, depth * 2 // 3)}],
)
def plan(anatomy: Anatomy, config: FoldGPT, seen: Mapping[str, tuple[float, ...]]) -> Layout:
    """Blocks with the largest gates stay in their order; each group of them reads its first one's weights.

    Parameters: ceil(keep / group) blocks, and the norms of each depth. Healed with distillation of the logits and the
    last blocks, as `heal` does without being told. Source: the abstract of arXiv 2407.00928 and summaries, all that
    was found. The gate's form, its regulariser, the constants and groups of neighbours by number are ours.
    """
    depth, keep = anatomy.depth, kept(anatomy.depth, config)
    if keep > depth:
        raise CommonweightError(f"foldgpt: keep={keep}; the model has {depth} blocks")
    gates = seen["gates"]
    like = sorted(sorted(range(depth), key=lambda i: (-gates[i], i))[:keep])

    def unit(at: int, weight: Weight) -> Unit | None:
        first = at // config.group * config.group
        return None if weight.kind == "norm" else Unit(f"group{first // config.group}", (like[first],))

    return tied(anatomy, like, unit)
