"""The mean of a row's input embeddings, for those who go by it: what a row says before any block has read it.

Of a decoder that answers it is the mean over the row's prompt alone, so that no token knows of one that comes after it.
Where the prompt ends is said by `host.route(prompts=...)`, by a batch's ``prompt_mask``, by labels of -100, or by
`generate`, whose prompt it is told. Nothing else tells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core import CommonweightError, counted
from .apart import Unfit
from .current import Current, Pass
from .route import Route
from .states import recomputing
from .weights import device_of

IGNORE = -100  # the label of a token that is not scored


@torch.compiler.disable(reason="what a row's tokens are is looked for beside what is traced")
def embedded(site: str, rows: int, current: Current) -> Tensor:
    """(rows, d) in float32: the mean over the tokens of each row, of a decoder over those of its prompt, padding aside,
    of their entries in the base's own table, without gradients. Made when the first site of a pass asks, and kept for
    its others; where the route knows the prompts it is theirs.

    Raises: CommonweightError for a part of a model that is called alone, for a model that is given no token ids, and
    where nothing says where prompts end; Unfit where the site is given other rows than the model.
    """
    run, route = current.thread.run, current.route
    if current.prompts and route is not None and route.context is not None:
        return _of_route(site, rows, route)
    if run.embedded is None or not (run.given or current.replayed or recomputing()):
        if run.given is None or run.given[0] is None:
            raise CommonweightError(f"{site}: a row's embedding comes of the whole model's input; call the model")
        with current.within(None):
            run.embedded = of_pass(site, run, _of_labels(site, run) if current.prompts else None)
    if len(run.embedded) != rows:
        told = f"{counted(rows, 'row')} ask here, and the model was given {counted(len(run.embedded), 'row')}"
        raise Unfit(f"{site}: {told}; make the tenant without this site", site)
    return run.embedded


def _of_route(site: str, rows: int, route: Route) -> Tensor:
    """What a route knows of its rows' prompts, each as often as generation has repeated its row."""
    assert route.context is not None
    times, rest = divmod(rows, len(route.context))
    if rest or (times != 1 and times not in route.root.factors):
        told = f"{counted(rows, 'row')} ask here, and the route was told {counted(len(route.context), 'prompt')}"
        raise CommonweightError(f"{site}: {told}; give one prompt for each row")
    return route.context if times == 1 else route.context.repeat_interleave(times, 0)


def _of_labels(site: str, run: Pass) -> Tensor:
    """Which tokens of a pass (B, T) come before the first that is scored."""
    labels, x = run.labels, run.ids if run.vectors is None else run.vectors
    if not isinstance(labels, Tensor) or run.past or x is None or labels.shape != x.shape[:2]:
        raise CommonweightError(
            f"{site}: it goes by the embedding of a row's prompt, and nothing says where the prompt ends. Generate, or "
            "give labels that are -100 there, or say it: host.route(..., prompts=[its token ids, ...]), prompt_mask "
            "for host.module"
        )
    mask = run.masks.get("attention_mask")
    numbers = run.numbers
    if isinstance(numbers, Tensor) and numbers.shape == labels.shape:
        begins = (numbers == 0) if not isinstance(mask, Tensor) or mask.dim() != 2 else (numbers == 0) & (mask != 0)
        if bool((begins.sum(1) > 1).any()):
            raise CommonweightError(
                f"{site}: texts stand side by side in one row, each with a prompt of its own; train without packing"
            )
    return before_scored(labels)


def before_scored(labels: Tensor) -> Tensor:
    """Which places of labels (B, T) come before the first that is scored, bool."""
    return (labels == IGNORE).long().cumprod(1).bool()


def of_batch(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
    """The same of a model's inputs, outside of a pass: the mean over whole rows."""
    return of_pass("a batch", Pass(model, (), batch))


def of_prompts(model: nn.Module, current: Current, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Of the token ids of each row's prompt, without padding: (rows, d)."""
    device = device_of(model)
    each = (torch.as_tensor(ids, dtype=torch.long, device=device)[None] for ids in prompts)
    return torch.cat([of_tokens(model, current, ids, None) for ids in each])


def of_tokens(
    model: nn.Module, current: Current, ids: Tensor | None, mask: Tensor | None, x: Tensor | None = None
) -> Tensor:
    """Of token ids (B, T), or their vectors x (B, T, d), under the mask (B, T) of those that are prompts."""
    named = {"input_ids": ids, "attention_mask": mask, **({} if x is None else {"inputs_embeds": x})}
    like = ids if x is None else x[..., 0]
    if like is None:
        raise CommonweightError("a prompt's embedding is one of token ids; give the model input_ids")
    with current.within(None):
        return of_pass("a prompt", Pass(model, (), named), torch.ones_like(like, dtype=torch.bool))


@torch.no_grad()
def of_pass(site: str, run: Pass, prompt: Tensor | None = None) -> Tensor:
    """prompt: which tokens count, (B, T); None: all that are no padding. Raises: CommonweightError where a row has
    no token that counts, of prompts."""
    assert run.given is not None
    x = run.vectors
    if x is None:
        if run.ids is None or run.ids.dim() != 2 or run.ids.is_floating_point():
            raise CommonweightError(f"{site}: a row's embedding is one of token ids; give the model input_ids")
        model = run.given[0]
        table: Any = next(m for m in model.modules() if hasattr(m, "get_input_embeddings")).get_input_embeddings()
        x = table.forward(run.ids)  # its hooks, which are tenants', left aside
    mask = run.masks.get("attention_mask")
    real = x.new_ones(*x.shape[:2], 1) if not isinstance(mask, Tensor) else (mask != 0)[..., None].to(x.device)
    if real.shape != (*x.shape[:2], 1):
        raise Unfit(f"{site}: {tuple(x.shape[:2])} tokens, under a mask of {tuple(real.shape[:-1])}", site)
    if prompt is not None:
        real = real.bool() & prompt[..., None].to(x.device)
        if (none := (~real.any(1)).flatten().nonzero().flatten()).numel():
            raise CommonweightError(
                f"{site}: row {int(none[0])} has no prompt, by whose embedding a tenant goes; begin the row with "
                "a token that is not scored"
            )
    return (x.float() * real).sum(1) / real.sum(1).clamp(min=1)
