"""The method that docs/share.md writes works as it stands there."""

import importlib.util
import re
import sys
from pathlib import Path

from commonweight import share
from commonweight.share import registry
from tests.share.deep import answer, far, llama

PAGE = Path(__file__).parents[2] / "docs" / "share.md"


def test_the_page_s_method(tmp_path, monkeypatch):
    monkeypatch.setattr(registry.METHODS, "all", dict(registry.METHODS.all))
    (text,) = re.findall(r"```py\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.S)
    (tmp_path / "pairs_of_the_page.py").write_text(text)
    spec = importlib.util.spec_from_file_location("pairs_of_the_page", tmp_path / "pairs_of_the_page.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)
    spec.loader.exec_module(module)
    small = share.share(llama(), "pairs")
    assert small.config.sharing["tied"]["mlp.up_proj.weight"] == [0, 0, 2, 2, 4, 4]
    assert far(answer(share.share(llama(), "pairs", relax=64)), answer(llama())) < 1e-5
