"""What host.add refuses beside a method's options: seeds that are none, labels that are none."""

import pytest

import commonweight as cw
from tests.models import make


@pytest.fixture(scope="module")
def host():
    return cw.Host(cw.Classifier(make("bert")[0]))


@pytest.mark.parametrize("seed", [-1, 1.0, True, "0", None])
def test_seeds(host, seed):
    with pytest.raises(cw.CommonweightError, match=r"seed is .*; wanted a whole number >= 0"):
        host.add("t", "lora", seed=seed)
    assert "t" not in host


@pytest.mark.parametrize("labels", [0, -1, True, "ab", (), ["a", "a"], ["a", 1], 2.0, {"a", "b"}])
def test_labels(host, labels):
    with pytest.raises(cw.CommonweightError, match=r"labels is .*; wanted distinct strings"):
        host.add("t", "lora", labels=labels)
    assert "t" not in host


def test_labels_by_name_or_number(host):
    assert host.add("a", "probe", labels=["no", "yes"]).labels == ("no", "yes")
    assert host.add("b", "probe", labels=1).labels == ("0",)
