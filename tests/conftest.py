import gc

import pytest

from tests import device  # noqa: F401  (which device, before anything is made)
from tests.adapt import tiny

gc.disable()  # until all tests are collected: nothing of that is garbage, and looking for it takes a third of the time


def pytest_collection_finish():
    """What was collected and imported stays until the end: no collection of garbage needs to look at it again. With all
    tests collected each one takes half a second, and accelerate asks for one before every training."""
    gc.enable()
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 10, 10)


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return tiny.base(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return tiny.base(tmp_path_factory.mktemp("llama"), "llama")
