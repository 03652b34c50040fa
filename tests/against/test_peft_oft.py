"""OFT against PEFT."""

import pytest
from peft import OFTConfig

from tests.against.wrapped import agree

OURS = {
    "r": "blocks", "oft_block_size": "block_size", "block_share": "share", "use_cayley_neumann": "neumann",
    "num_cayley_neumann_terms": "terms",
}  # fmt: skip


@pytest.mark.parametrize("kind, targets", [("llama", ["q_proj", "v_proj", "down_proj"]), ("bert", ["query", "value"])])
@pytest.mark.parametrize(
    "theirs",
    [
        {},
        {"oft_block_size": 8},
        {"oft_block_size": 0, "r": 4},
        {"oft_block_size": 4, "block_share": True},
        {"oft_block_size": 4, "use_cayley_neumann": False},
        *({"oft_block_size": 4, "num_cayley_neumann_terms": n} for n in (2, 3, 4, 6, 7)),
    ],
)
def test_oft(kind, targets, theirs):
    config = OFTConfig(target_modules=targets, **theirs)
    options = {OURS[k]: v for k, v in theirs.items() if v != 0 or v is False}
    agree(
        kind,
        config,
        "oft_R",
        lambda site, rest, p: (f"{site}.R", p),
        "oft",
        "|".join(f"*.{t}" for t in targets),
        **options,
    )


def test_constrained():
    config = OFTConfig(
        target_modules=["q_proj", "v_proj", "down_proj"], oft_block_size=4, coft=True, eps=0.3, use_cayley_neumann=False
    )
    agree(
        "llama", config, "oft_R", lambda site, rest, p: (f"{site}.R", p), "oft",
        "*.q_proj|*.v_proj|*.down_proj",
        block_size=4, eps=0.3, neumann=False,
    )  # fmt: skip
