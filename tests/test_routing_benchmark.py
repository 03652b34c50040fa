"""What `benchmarks.routing` counts and tells."""

import pytest

import commonweight as cw
from benchmarks.routing import Row, active, against, difference, page, told
from commonweight.compare import Fit

SITES = [cw.Site("layers.0.q_proj", 48, 32, "linear", "query")]


@pytest.mark.parametrize(
    ("method", "options", "numbers"),
    [
        ("lora", {"rank": 3}, 3 * 80),
        ("molora", {"rank": 2, "experts": 5}, 5 * (2 * 80 + 32)),  # a token takes all
        ("mola", {"rank": 2, "experts": (4,)}, 2 * 2 * 80 + 4 * 32),  # two experts, and the whole router
        ("smora", {"rank": 8, "active": 2}, 2 * 80 + 8 * 32),
        ("hydralora", {"rank": 2, "experts": 3}, 2 * 32 + 3 * (2 * 48 + 32)),
        ("dynmole", {"rank": 2, "experts": 6}, 2 * 2 * 80 + 6 * 32),  # at the fewest
        ("smore", {"rank": 2, "keys": 3}, 2 * (2 * 33 + 8 * 3) + 3 * 33 + 3 * 4 + 3 * 4 + 4 * 3 + 48 * 9),
    ],
)
def test_numbers_that_a_token_reads(method, options, numbers):
    assert active(cw.plan(method, SITES, **options)) == numbers


def test_a_row_and_its_rivals():
    mine, lora, small = (Fit("mola", {"rank": 2}, 90, 90, 45), Fit("lora", {"rank": 4}, 100, 100, 50), Fit("lora", {"rank": 2}, 50, 50, 25))  # noqa: E501  # fmt: skip
    done = {("mola rank=2", "trec", 0): 91.0, ("mola rank=2", "trec", 1): 93.0, ("lora rank=4", "trec", 0): 90.0}
    done |= {("lora rank=4", "trec", 1): 93.0, ("lora rank=2", "trec", 1): 95.0}
    row = told(Row(mine, 25, small), lora, done)
    assert row["tasks"] == {"trec": 92.0} and row["runs"] == 2
    assert row["over equal bytes"][0] == 0.5 and row["over equal bytes"][1] == pytest.approx(6.35, abs=0.01)
    assert row["over equal active"] == [-2.0, None]
    assert against({}, lora, done) is None and difference(None) == "-" and difference([1.0, 0.5]) == "+1.00 ± 0.50"
    assert "| `mola rank=2` | 45 | 25 | 92.0 | - | - | +0.50 ± 6.35 | -2.00 (`lora rank=2`) | 2 |" in page(
        [row], "1MB", 3, 0, 2, 9
    )
