"""The log of a server: whatever its process says is a line of JSON."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from transformers.generation.continuous_batching.utils import logger as theirs

from commonweight.serve.http.logs import say, to_stderr

NAMES = "commonweight.serve", "uvicorn", "transformers", "ContinuousBatchingLogger"


@contextmanager
def handlers() -> Iterator[None]:
    """What stands there before comes back, pytest's among it."""
    logs = [logging.root, *map(logging.getLogger, NAMES)]
    before = [(log, log.handlers, log.propagate, log.level) for log in logs]
    logging.root.handlers = []
    logging.captureWarnings(False)
    try:
        yield
    finally:
        logging.captureWarnings(False)
        for log, found, propagate, level in before:
            log.handlers, log.propagate = found, propagate
            log.setLevel(level)


@pytest.mark.filterwarnings("default:old")
def test_every_line_is_json(capsys):
    with handlers():
        to_stderr()
        say("request", tenant="a", none=None)
        logging.getLogger("asyncio").error("Task exception was never retrieved\n...", exc_info=ValueError("two\nlines"))
        theirs.error("the loop")
        logging.getLogger("transformers.models").error("a config")
        warnings.warn("old", stacklevel=1)
        logging.getLogger("commonweight.serve.ticket").warning("a piece")
        logging.getLogger("httpx").info("too much")
    said = capsys.readouterr()
    lines = [json.loads(line) for line in said.err.splitlines()]
    assert [(x.get("logger"), x["level"]) for x in lines] == [
        (None, "info"), ("asyncio", "error"), ("ContinuousBatchingLogger", "error"), ("transformers.models", "error"),
        ("py.warnings", "warning"), ("commonweight.serve.ticket", "warning"),
    ]  # fmt: skip
    assert lines[0]["event"] == "request" and lines[0]["tenant"] == "a" and "none" not in lines[0]
    assert "ValueError: two\nlines" in lines[1]["error"] and not said.out
