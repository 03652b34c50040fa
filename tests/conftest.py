import gc

import pytest

from tests import device  # noqa: F401  (which device, before anything is made)
from tests.adapt import tiny


def pytest_collection_finish():
    """What was collected and imported stays until the end: no collection of garbage needs to look at it again. With all
    tests collected each one takes half a second, and accelerate asks for one before every training."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return tiny.base(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return tiny.base(tmp_path_factory.mktemp("llama"), "llama")
