"""A file's header is believed after its digest, and no further than its file is long."""

import re

import pytest
import torch

from commonweight import CommonweightError
from commonweight.formats import native
from tests.commons.small import HEADER


def write(path, numbers=4, **header):
    path.write_bytes(native.sealed({**HEADER, "base": "ab" * 16, **header}, {"a": torch.ones(numbers)}))
    return path


def test_a_sound_one(tmp_path):
    sites = {"layers.{}.q": [4, 4, "0-1999"], "layers.{}.v": [4, 4, "0-1999"]}
    header = native.read_header(write(tmp_path / "t", sites=sites, config={"rank": 4000}))
    assert len(native.unpack_sites("t", header["sites"])) == 4000


@pytest.mark.parametrize(
    "header",
    [
        {"sites": {f"layers.{{}}.{i}": [4, 4, "0-999999"] for i in range(20)}},
        {"sites": {"layers.{}.q": [4, 4, "0-999999"]}},
        {"sites": {f"layers.{{}}.{i}": [4, 4, "0-999"] for i in range(10)}},
        {"config": {"skills": 10**9}},
    ],
)
def test_counts_beyond_the_file(tmp_path, header):
    path = write(tmp_path / "t", **header)
    with pytest.raises(CommonweightError, match=r"t: its header is damaged \(.*save the tenant again"):
        native.read_header(path)


def test_the_digest_is_looked_at_first(tmp_path, monkeypatch):
    path = write(tmp_path / "t", 9000, sites={"layers.{}.q": [4, 4, "0-4999"]})
    path.write_bytes(path.read_bytes().replace(b"0-4999", b"0-9999"))
    monkeypatch.setattr(native, "unpack_sites", lambda *_: pytest.fail("it was believed"))
    with pytest.raises(CommonweightError, match="this file was altered"):
        native.read_header(path)


def test_a_file_of_old_has_no_digest(tmp_path):
    data = write(tmp_path / "t").read_bytes()
    said = re.search(rb', \\"digest\\": \\"[0-9a-f]{32}\\"|\\"digest\\": \\"[0-9a-f]{32}\\", ', data)
    assert said is not None
    (tmp_path / "t").write_bytes(data.replace(said[0], b" " * len(said[0])))
    assert "digest" not in native.read_header(tmp_path / "t")
