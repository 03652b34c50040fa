"""What a model does with text, for methods that choose by it: its hidden states between blocks, summed up."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..adapt.base import limit, tokenizer_of
from ..adapt.tasks import LM
from ..adapt.tasks.features import Features
from ..adapt.tasks.scored import output_layer
from ..builder.dissect import stack
from ..core import CommonweightError

MOST = 4096  # tokens that are looked at


def batches(model: Any, rows: Sequence[Any], size: int = 8) -> Iterator[dict[str, Tensor]]:
    """Batches of rows, at most `MOST` tokens. rows: lists of token numbers, or rows as `adapt` reads them.

    Raises: CommonweightError for a model that reads no text, no rows, and what is neither."""
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        raise CommonweightError(f"{type(model).__name__} reads {model.main_input_name}; the method looks at text")
    if not len(rows):
        raise CommonweightError("no rows to look at")
    if isinstance(rows[0], dict):
        kind: Any = LM if output_layer(model) is not None else Features
        tokenizer = tokenizer_of(model)
        rows = [e["input_ids"] for e in kind(tokenizer, limit(model, tokenizer, None, 128)).examples(rows)]
    taken, tokens = [], 0
    for number, row in enumerate(rows):
        taken.append(_ids(row, number, model.get_input_embeddings().num_embeddings))
        tokens += len(row)
        if tokens >= MOST:
            break
    device = next(model.parameters()).device
    for i in range(0, len(taken), size):
        some = taken[i : i + size]
        longest = max(map(len, some))
        ids = torch.tensor([r + [0] * (longest - len(r)) for r in some], device=device)
        mask = torch.tensor([[1] * len(r) + [0] * (longest - len(r)) for r in some], device=device)
        yield {"input_ids": ids, "attention_mask": mask}


def _ids(row: Any, number: int, most: int) -> list[int]:
    found = row.tolist() if isinstance(row, Tensor) else row
    if isinstance(found, str) or not len(found) or not all(isinstance(t, int) and 0 <= t < most for t in found):
        raise CommonweightError(
            f"row {number} is {str(row)[:60]!r}; wanted numbers of tokens, 0 to {most - 1}, or a row with a text"
        )
    return list(found)


@torch.no_grad()
def states(model: Any, rows: Sequence[Any]) -> list[Tensor]:
    """(tokens, d) before the first block and after each: L + 1 of them. Cost: a forward pass; L + 1 times `MOST` d."""
    blocks: Any = model.get_submodule(stack(model))
    seen: list[list[Tensor]] = [[] for _ in range(len(blocks) + 1)]
    mask: list[Tensor] = []

    def keep(place: int) -> Callable[..., None]:
        def hook(_: Any, args: Any, kwargs: Any, out: Any) -> None:
            if place == 0:
                seen[0].append(_first(args, kwargs)[mask[0]])
            seen[place + 1].append((out[0] if isinstance(out, tuple) else out)[mask[0]])

        return hook

    handles = [b.register_forward_hook(keep(i), with_kwargs=True) for i, b in enumerate(blocks)]
    was = model.training
    model.eval()
    try:
        for batch in batches(model, rows):
            mask[:] = [batch["attention_mask"].bool()]
            model(**batch)
    finally:
        model.train(was)
        for h in handles:
            h.remove()
    return [torch.cat(one).float() for one in seen]


def _first(args: Any, kwargs: Any) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


def cka(x: Tensor, y: Tensor) -> float:
    """Linear CKA of two representations (tokens, d): 1 for the same up to a rotation and a factor.

    Source: Kornblith et al., arXiv 1905.00414, eq. (4), of centred features."""
    x, y = x - x.mean(0), y - y.mean(0)
    cross = torch.linalg.norm(x.T @ y) ** 2
    return float(cross / (torch.linalg.norm(x.T @ x) * torch.linalg.norm(y.T @ y)))


def influence(before: Tensor, after: Tensor) -> float:
    """1 - the mean cosine of a block's input and output. Source: ShortGPT, arXiv 2403.03853, eq. (1)."""
    return float(1 - torch.nn.functional.cosine_similarity(before, after, dim=-1).mean())


@torch.no_grad()
def needless(model: Any, rows: Sequence[Any], n: int) -> tuple[int, ...]:
    """The n blocks without which the last hidden states change least, by their mean cosine, one after the other.

    Each is chosen among those that are left, without those before it. Cost: about n L forward passes.
    Source: FuseGPT's macro influence; code JarvisPei/FuseGPT.
    """
    blocks: Any = model.get_submodule(stack(model))
    some, out = list(batches(model, rows)), set[int]()
    found: list[int] = []
    handles = []
    for i, block in enumerate(blocks):

        def hook(_: Any, args: Any, kwargs: Any, y: Any, i: int = i) -> Any:
            if i not in out:
                return None
            x = _first(args, kwargs)
            return (x, *y[1:]) if isinstance(y, tuple) else x

        handles.append(block.register_forward_hook(hook, with_kwargs=True))
    was = model.training
    model.eval()
    try:
        full = _last(model, some)
        for _ in range(n):
            alike = {}
            for i in range(len(blocks)):
                if i not in found:
                    out.add(i)
                    alike[i] = float(torch.nn.functional.cosine_similarity(full, _last(model, some), dim=-1).mean())
                    out.discard(i)
            found.append(max(alike, key=lambda i: (alike[i], -i)))
            out.add(found[-1])
            full = _last(model, some) if n > len(found) else full
    finally:
        model.train(was)
        for h in handles:
            h.remove()
    return tuple(found)


def _last(model: Any, some: Sequence[dict[str, Tensor]]) -> Tensor:
    """(tokens, d): the hidden states behind the last block and its norm."""
    out = []
    for batch in some:
        y = model(**batch, output_hidden_states=True).hidden_states[-1]
        out.append(y[batch["attention_mask"].bool()])
    return torch.cat(out).float()
