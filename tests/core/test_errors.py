"""The name that was meant, for a name that is not known."""

import pytest

import commonweight as cw
from commonweight.core.errors import edits, nearest, unknown
from commonweight.methods import available, get


@pytest.mark.parametrize(
    ("a", "b", "n"),
    [("lora", "lora", 0), ("lroa", "lora", 1), ("lor", "lora", 1), ("loraa", "lora", 1), ("lara", "lora", 1),
     ("", "lora", 4), ("boft", "ofbt", 2), ("ca", "abc", 3)],
)  # fmt: skip
def test_edits(a, b, n):
    assert edits(a, b) == edits(b, a) == n


def slips(name):
    """With two neighbours swapped, and with one letter lost."""
    yield from (name[:i] + name[i + 1] + name[i] + name[i + 2 :] for i in range(len(name) - 1))
    yield from (name[:i] + name[i + 1 :] for i in range(len(name)))


@pytest.mark.parametrize("name", sorted(available()))
def test_every_method_is_found_from_a_slip_of_the_keys(name):
    for typed in slips(name):
        if typed.lower() in available() or not typed:
            continue
        found = nearest(typed, available())
        alike = {n for n in available() if edits(typed, n) <= 1}
        assert found is not None and found in alike
        if alike == {name}:
            assert found == name


def test_what_is_said_of_it():
    with pytest.raises(cw.CommonweightError, match="unknown method 'lroa'; did you mean 'lora'"):
        get("lroa")
    assert "did you mean 'Legal'?" in str(unknown("tenant", "lgeal", ["Legal", "medical"]))
    assert str(unknown("tenant", "x" * 10_000, ["legal"])).endswith("; known: legal")
    assert nearest("legal", []) is None
