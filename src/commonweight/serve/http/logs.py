"""The log: one line of JSON an event, without prompts unless they are asked for."""

from __future__ import annotations

import json
import logging
import sys
from datetime import UTC, datetime
from typing import Any

LOG = logging.getLogger("commonweight.serve")


class Lines(logging.Formatter):
    """A record as one line of JSON; what was said beside the message stands in it by name."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "told", {}),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps({k: v for k, v in told.items() if v is not None}, default=str)


def say(event: str, level: int = logging.INFO, exc_info: Any = None, **told: Any) -> None:
    LOG.log(level, event, exc_info=exc_info, extra={"told": told})


def to_stderr(level: int = logging.INFO) -> None:
    """The server's own events and uvicorn's errors, as lines of JSON on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    for name, least in (("commonweight.serve", level), ("uvicorn", logging.WARNING)):
        log = logging.getLogger(name)
        log.handlers, log.propagate = [handler], False
        log.setLevel(least)
