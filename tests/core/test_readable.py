"""YAML of people: what it says is bounded, and an error says where."""

from __future__ import annotations

import pytest

from commonweight.core import CommonweightError
from commonweight.core.readable import CHARACTERS, DEEPEST, ENTRIES, read_object, read_text, read_yaml, within


def doubled(times: int) -> str:
    """Ten values, ten times as many with every line."""
    lines = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, times)]
    return "\n".join(lines)


def test_values():
    text = "rate: 2e-3\nsame: &x {b: 1}\nagain: {<<: *x, c: .inf}\n"
    assert read_yaml(text, "f") == {"rate": 0.002, "same": {"b": 1}, "again": {"b": 1, "c": float("inf")}}
    assert read_yaml("", "f") is None
    assert len(read_yaml(doubled(3), "f")["a2"]) == 10


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: [", "f.yaml, line 1: not valid YAML"),
        ("a: 1\nb: 2026-13-45", "f.yaml, line 2: not valid YAML: '2026-13-45' cannot be read .month must be in 1..12"),
        ("a: !!timestamp soon", "line 1: not valid YAML: 'soon' cannot be read .it is no timestamp"),
        ("a: !!int many", "line 1: not valid YAML: 'many' cannot be read .invalid literal"),
        ("a: {b: [1, 0x" + "f" * 40 + "]}", r"f.yaml: a.b.1 is a whole number of 160 bits; wanted at most 64"),
        ("a: " + "9" * 5000, "line 1: not valid YAML: '9{59} cannot be read .Exceeds the limit"),
        ("a: *b", "line 1: not valid YAML: found undefined alias"),
        ("a: &x [*x]", "line 1: it contains itself, by an alias"),
        ("a: " + "[" * DEEPEST + "[" + "]" * DEEPEST + "]", f"not valid YAML: nested more than {DEEPEST} deep"),
        ("[" * 5000, f"not valid YAML: nested more than {DEEPEST} deep"),
        (doubled(8), r"has [\d,]+ values when its aliases are written out; wanted at most 100,000"),
        ("a: \x00", "not valid YAML: unacceptable character"),
        ("{[1]: 2}", "not valid YAML: found unhashable key"),
        ("#" * (CHARACTERS + 1), r"has 500,001 characters; wanted at most 500,000"),
    ],
)
def test_what_is_refused(text, message):
    with pytest.raises(CommonweightError, match=message):
        read_yaml(text, "f.yaml")


def test_lines_of_keys_and_a_key_that_is_twice_there():
    lines = {}
    read_yaml("a:\n  b: 1\nc: 2\n", "f", lines=lines)
    assert lines == {("a",): 1, ("a", "b"): 2, ("c",): 3}
    with pytest.raises(CommonweightError, match=r"f, line 2: a appears twice, first in line 1"):
        read_yaml("a: 1\na: 2\n", "f", lines={})
    with pytest.raises(CommonweightError, match=r"f, line 3: a.b.c.1 is a whole number of 80 bits"):
        read_yaml("a:\n  b:\n    c: [1, 0x" + "f" * 20 + "]\n", "f", lines={})


def test_values_that_are_given():
    loop: list = []
    loop.append(loop)
    with pytest.raises(CommonweightError, match="contains itself"):
        within(loop, "recipe")
    shared = [1] * 1000
    with pytest.raises(CommonweightError, match=f"more than {ENTRIES:,} values"):
        within([shared] * 101, "recipe")
    within([shared] * 10, "recipe")


def test_files(tmp_path):
    with pytest.raises(CommonweightError, match="no such recipe"):
        read_text(tmp_path / "none.yaml", "recipe")
    (tmp_path / "bytes.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(CommonweightError, match=r"bytes.yaml: cannot be read"):
        read_text(tmp_path / "bytes.yaml")
    (tmp_path / "long.yaml").write_bytes(b"#" * (4 * CHARACTERS + 1))
    with pytest.raises(CommonweightError, match=r"long.yaml: has 2,000,001 bytes; wanted at most"):
        read_text(tmp_path / "long.yaml")


def test_objects(tmp_path):
    file = tmp_path / "config.json"
    file.write_text('{"a": [1]}')
    assert read_object(file, 10) == {"a": [1]}
    with pytest.raises(CommonweightError, match=r"config.json: 10 bytes; a config has at most 9"):
        read_object(file, 9)
    for text, message in (("[1]", "holds a list"), ("{", "not a whole JSON file"), ("[" * 100_000, "not a whole")):
        file.write_text(text)
        with pytest.raises(CommonweightError, match=f"config.json: {message}"):
            read_object(file)
    with pytest.raises(CommonweightError, match=r"none.json: .*cannot be read"):
        read_object(tmp_path / "none.json")
