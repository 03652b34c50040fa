"""How many inputs a property is tried on, and which: the same ones in every run of the suite, so that it fails for a
change and not by chance. `make fuzz` draws new ones, and twenty times as many."""

import os

from hypothesis import HealthCheck, settings

TIMES = int(os.environ.get("FUZZ", "0"))


def drawn(examples: int) -> settings:
    """A decorator beside hypothesis.given."""
    return settings(
        max_examples=examples * max(TIMES, 1), derandomize=not TIMES, deadline=None,
        database=None if not TIMES else settings.default.database,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )  # fmt: skip
