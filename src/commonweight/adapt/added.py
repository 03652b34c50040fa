"""A tokenizer that has more tokens than the base has entries."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from ..core import CommonweightError
from ..host import Host
from .base import tokenizer_of
from .beside import ADDED


def size(tokenizer: Any) -> int:
    """One more than its largest number."""
    return max(len(tokenizer), max(tokenizer.get_vocab().values(), default=-1) + 1)


def room(host: Host, rows: Any, tokenizer: Any = None) -> Any:
    """`token_rows` with ``"added"`` as the entries that the tokenizer has beyond the base's, at the table and the head.

    The vocabulary grows by them where it has not. Raises: CommonweightError where the tokenizer has none.
    """
    if rows != ADDED:
        return rows
    tokenizer = tokenizer_of(host.model) if tokenizer is None else tokenizer
    base = host.base
    here = base.limit.own or base.vocabulary
    if here is None or size(tokenizer) <= here:
        raise CommonweightError(
            f"token_rows: the tokenizer has {size(tokenizer)} tokens, and the base knows {here}: none were added. Name "
            "the entries by number, or add tokens (tokenizer.add_tokens, save_pretrained into the model's folder)"
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
