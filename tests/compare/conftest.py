import pytest

from commonweight.compare import Data
from commonweight.compare.job import Job
from tests.adapt import tiny


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Two tasks, their files named so that they are found by each other."""
    folder = tmp_path_factory.mktemp("data")
    for i, task in enumerate(("one", "two")):
        for j, (part, n) in enumerate({"train": 24, "dev": 12, "test": 20}.items()):
            tiny.tsv(folder / f"{task}.{part}.tsv", tiny.rows(n, seed=10 * i + j))
    return folder


@pytest.fixture
def data(files):
    return tuple(
        Data(t, *(str(files / f"{t}.{part}.tsv") for part in ("train", "test", "dev"))) for t in ("one", "two")
    )


@pytest.fixture
def job(bert, data):
    return Job(str(bert), data[0], "lora", {"rank": 1}, 0, recipe={"epochs": 1, "batch_size": 8}, dtype="float32")
