"""Linear probe: nothing but the task's head; the floor that every method must beat."""

from __future__ import annotations

from collections.abc import Sequence

from ...core import Plan, Site, config
from ..registry import method


@config
class Probe:
    pass


@method(
    "probe",
    Probe,
    paper="Understanding intermediate layers using linear classifier probes, arXiv 1610.01644",
    formula="0 (the head alone)",
    kinds=(),
    named=(),
    lr=2e-3,
)
def plan(sites: Sequence[Site], config: Probe) -> Plan:
    """No use of any site. Source: Alain and Bengio 2016."""
    return Plan({}, ())
