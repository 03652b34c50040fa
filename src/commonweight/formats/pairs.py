"""A number for most sites, and others for some."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any


def commonest(values: Iterable[Any]) -> Any:
    return Counter(values).most_common(1)[0][0]


def others(by_site: Mapping[str, Any], default: Any) -> tuple[tuple[str, Any], ...]:
    """(site, value) pairs for our `ranks` and `alphas`, where a site differs from the default."""
    return tuple((site, value) for site, value in by_site.items() if value != default)
