"""Rows that the base has no room for: tokens without an entry, and texts too long behind a tenant's own places."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..core import CommonweightError, counted
from ..host import Host, Tenant
from .base import tokenizer_of
from .beside import ADDED
from .tasks.base import Example, length


def size(tokenizer: Any) -> int:
    """One more than its largest number."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def room(host: Host, rows: Any, tokenizer: Any = None) -> Any:
    """`token_rows` with ``"added"`` as the entries that the tokenizer has beyond the base's, at the table and the head.

    The vocabulary grows by them where it has not. Raises: CommonweightError where the tokenizer has none.
    """
    if rows != ADDED:
        return rows
    base = host.base
    if getattr(host.model, "sense", None) is not None:
        raise CommonweightError(f"token_rows: this model reads {host.model.sense}, and has no table of tokens")
    tokenizer = tokenizer_of(host.model) if tokenizer is None else tokenizer
    here = base.limit.own or base.vocabulary
    if here is None or size(tokenizer) <= here:
        raise CommonweightError(
            f"token_rows: the tokenizer has {size(tokenizer)} tokens, and the base knows {here}: none were added. Name "
            "the entries by number, or add tokens (tokenizer.add_tokens, save_pretrained into a folder, and "
            "--tokenizer FOLDER)"
        )
    host.resize_vocabulary(max(size(tokenizer), base.vocabulary or 0))
    return {name: list(range(here, size(tokenizer))) for name in base.speaking}


def known(host: Host, tokenizer: Any, examples: Mapping[str, Iterable[Mapping[str, Any]]]) -> None:
    """Raises: CommonweightError for an example with a token for which the base has no entry."""
    here = host.base.vocabulary
    if here is None or size(tokenizer) <= here:
        return
    for name, rows in examples.items():
        for row in rows:
            for value in row.values():
                top = max((i for i in value if isinstance(i, int)), default=0) if isinstance(value, list) else 0
                if top >= here:
                    raise CommonweightError(
                        f"{name}: a row has the token {tokenizer.convert_ids_to_tokens(top)!r}, number {top}, and the "
                        f"base has {here} entries. Train the added ones beside the method: --token-rows added "
                        '(token_rows="added")'
                    )


def behind(host: Host, tenant: Tenant, rows: Mapping[str, Sequence[Example]]) -> None:
    """Before any work. rows: by what they are called. Raises: CommonweightError for a row that no table of positions
    holds behind what a tenant puts ahead of it."""
    room, name = host.base.longest(tenant), tenant.method.name
    if room is None:
        return
    for what, examples in rows.items():
        n, at = max(((length(e), i) for i, e in enumerate(examples, 1)), default=(0, 0))
        if n > room > 0:
            raise CommonweightError(
                f"{what}: number {at} has {counted(n, 'token')}, and behind what {name} puts ahead of a row the model "
                f"has positions for {room}; lower max_length to at most {room}, or put less ahead"
            )
        if n > room:
            raise CommonweightError(
                f"{what}: number {at} has {counted(n, 'token')}, and behind what {name} puts ahead of a row the model "
                f"has no position left; put at least {counted(n - room, 'token')} less ahead"
            )
