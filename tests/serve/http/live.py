"""A server that listens on a free port, in a thread."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from commonweight.host import Host
from commonweight.serve import Engine
from commonweight.serve.http import Settings, make
from commonweight.serve.http.run import Server, bound, server

from . import shop


@contextmanager
def live(host: Host, words: Any = None, **settings: Any) -> Iterator[tuple[str, Server, Engine]]:
    """(its address, the server, its engine). words: another tokenizer."""
    with Engine(host, tokenizer=words or shop.tokenizer(), max_requests=8, page_size=8) as engine:
        with listening(make(engine, Settings(name="org/tiny", **settings))) as (address, one):
            yield address, one, engine


@contextmanager
def listening(app: Any) -> Iterator[tuple[str, Server]]:
    with bound("127.0.0.1", 0) as sock:
        one = server(app, app.state.service.settings.drain)
        thread = threading.Thread(target=one.run, args=([sock],))
        port = sock.getsockname()[1]
        thread.start()
        until(lambda: one.started)
        try:
            yield f"http://127.0.0.1:{port}", one
        finally:
            one.should_exit = True
            thread.join(30)


def until(so: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not so():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.01)
