import contextlib
import functools
import gc
import logging
import os
import sys
import types
from pathlib import Path

import pytest
from _pytest.logging import LogCaptureHandler, caplog_handler_key, catching_logs

from tests import apart

gc.disable()  # until all tests are collected: nothing of that is garbage, and looking for it takes a third of the time

os.fsync = lambda _: None  # no test cuts the power: what a killed process wrote is there without it
logging.getLogger().addHandler(logging.NullHandler())  # as with caplog: what is logged is no output
HERE = Path(__file__).parent
known = [0]  # modules, when garbage was last looked for among all there is


def settle():
    """What was collected and imported stays until the end: no collection of garbage needs to look at it again."""
    gc.freeze()
    known[0] = len(sys.modules)


def pytest_configure(config):
    if apart.ADDRESS not in os.environ:  # else this is a worker
        beside = contextlib.ExitStack()
        beside.enter_context(apart.server())
        config.add_cleanup(beside.close)
    many = getattr(config.option, "numprocesses", None)
    if many:  # a worker has no core to itself: its threads would wait awake
        os.environ.setdefault("OMP_NUM_THREADS", "1")
    if not many or hasattr(config, "workerinput"):  # else tests run elsewhere, and this process needs no torch
        begin()


def begin():
    import torch
    import typer.main

    from tests import device  # noqa: F401  (which device, before anything is made)

    for kind in (torch.cuda, torch.xpu, torch.mtia):  # what is not there keeps every seed, each with its whole stack
        if not kind.is_available():
            kind.manual_seed_all = lambda _: None
    typer.main.get_command = functools.cache(typer.main.get_command)  # else each call of a command reads all of them


def pytest_collection_modifyitems(config, items):
    """A worker that has ended takes tests from the end of another's list: there stand short ones that share nothing, so
    that none makes a second time what several tests read, or begins last what takes longest."""
    if hasattr(config, "workerinput"):
        items.sort(key=lambda i: (i.path.parent != HERE) + (i.path.parent.name in ("laws", "gpu")))


def pytest_collection_finish():
    gc.enable()
    settle()
    gc.set_threshold(20_000, 10, 10)
    if memory := sys.modules.get("accelerate.utils.memory"):  # it has garbage collected before every training
        memory.gc = types.SimpleNamespace(collect=lambda: 0)  # type: ignore[attr-defined]


def pytest_runtest_logfinish():
    if len(sys.modules) > known[0] + 30:  # tests import too
        gc.collect(1)
        settle()


@pytest.fixture
def caplog(request):
    """pytest's own, for who asks: its plugin goes through the loggers of all modules six times in every test."""
    with catching_logs(LogCaptureHandler()) as request.node.stash[caplog_handler_key]:
        yield pytest.LogCaptureFixture(request.node, _ispytest=True)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    from tests.adapt import tiny

    return tiny.base(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    from tests.adapt import tiny

    return tiny.base(tmp_path_factory.mktemp("llama"), "llama")
