import pytest

from tests.adapt import tiny


@pytest.fixture(scope="session")
def bert(tmp_path_factory):
    return tiny.base(tmp_path_factory.mktemp("bert"), "bert")


@pytest.fixture(scope="session")
def llama(tmp_path_factory):
    return tiny.base(tmp_path_factory.mktemp("llama"), "llama")
