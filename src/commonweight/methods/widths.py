"""Which widths an option fits: what a method leaves out by default, and refuses where it is named."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from ..core import Site

Unfit = Callable[[Any, Site], str]  # (config, site) -> the option that does not fit, "shards=4", or ""


def divides(option: str, *widths: str) -> Unfit:
    """Of an option that must divide widths of a site, both by default; None divides all."""
    return partial(_divides, option, widths or ("out", "inp"))


def within(option: str) -> Unfit:
    """Of an option that can be no more than a weight has numbers."""
    return partial(_within, option)


def ranked(times: int = 1) -> Unfit:
    """Of `rank`, so many times which a weight must have; None is as much as it has."""
    return partial(_ranked, times)


def _ranked(times: int, config: Any, site: Site) -> str:
    return f"rank={config.rank}" if config.rank and times * config.rank > min(site.out, site.inp) else ""


def _divides(option: str, widths: tuple[str, ...], config: Any, site: Site) -> str:
    n = getattr(config, option)
    return f"{option}={n}" if n and any(getattr(site, w) % n for w in widths) else ""


def _within(option: str, config: Any, site: Site) -> str:
    n = getattr(config, option)
    return f"{option}={n}" if n > site.out * site.inp else ""
