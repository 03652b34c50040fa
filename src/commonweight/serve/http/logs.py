"""The log: one line of JSON an event, without prompts unless they are asked for."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import suppress
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

_OTHERS = "transformers", "ContinuousBatchingLogger"  # libraries with handlers of their own
LOG = logging.getLogger("commonweight.serve")


class Lines(logging.Formatter):
    """A record as one line of JSON; what was said beside the message stands in it by name."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": None if hasattr(record, "told") else record.name,
            **getattr(record, "told", {}),
        }
        if record.exc_info:
            told["error"] = self.formatException(record.exc_info)
        return json.dumps({k: v for k, v in told.items() if v is not None}, default=str)


def say(event: str, level: int = logging.INFO, exc_info: Any = None, **told: Any) -> None:
    LOG.log(level, event, exc_info=exc_info, extra={"told": told})


def to_stderr(level: int = logging.INFO) -> None:
    """The server's own events, and whatever else this process logs or warns of, as lines of JSON on stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    with suppress(ImportError):  # it adds its handler when it is asked first: now, and not later beside this one
        import_module("transformers.utils.logging").get_verbosity()
    LOG.setLevel(level)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    for name in ("commonweight.serve", "uvicorn", *_OTHERS):
        log = logging.getLogger(name)
        log.handlers = [handler]
        log.propagate = False
    if not logging.root.handlers:  # of asyncio, and of who has none of its own
        logging.root.addHandler(handler)
    logging.captureWarnings(True)
