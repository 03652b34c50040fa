"""Forms with names of their own: the page's part is that of its data, and the base that one of them makes is small."""

import torch

from benchmarks.forms import bases, page


def test_the_page_is_that_of_its_data():
    text = page.PAGE.read_text("utf-8")
    assert page.put(text, page.kept()) == text
    assert page.section({}) == "" and page.BEGIN not in page.put(text, {})


def test_half_is_zero_and_the_rest_has_seven_values():
    weight = torch.randn(6, 128, generator=torch.Generator().manual_seed(0))
    found = bases.few(weight)
    assert (found == 0).float().mean() >= 0.5
    for group, was in zip(found.reshape(-1, 64), weight.reshape(-1, 64)):
        step = was.abs().max() / 3
        torch.testing.assert_close(group, (group / step).round() * step)
        assert (group[group != 0] - was[group != 0]).abs().max() <= step / 2 + 1e-6
    assert torch.equal(bases.few(found), found)
