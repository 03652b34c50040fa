"""A choice of more than there are: refused in one way by every method that chooses."""

from __future__ import annotations


def more_than(option: str, wanted: int, things: str, there: int) -> str | None:
    """What a config's `check` says where an option asks for more things than there are; None where it does not."""
    return None if wanted <= there else f"{option} {wanted} of {there} {things}; take {option} at most {there}"
