"""RoAd against PEFT."""

import pytest
from peft import RoadConfig

from tests.against.wrapped import agree


@pytest.mark.parametrize(
    "kind, targets", [("llama", ["q_proj", "v_proj", "down_proj"]), ("bert", ["query", "output.dense"])]
)
@pytest.mark.parametrize("variant", ["road_1", "road_2", "road_4"])
@pytest.mark.parametrize("group_size", [2, 8, 16])
def test_road(kind, targets, variant, group_size):
    config = RoadConfig(target_modules=targets, variant=variant, group_size=group_size)
    sites = "|".join(f"*.{t}" for t in targets)
    agree(
        kind, config, "road_", lambda site, rest, p: (f"{site}.{rest.split('.')[0]}", p), "road", sites,
        variant=variant, group_size=group_size,
    )  # fmt: skip
