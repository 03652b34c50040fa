from __future__ import annotations

import torch

from commonweight.core.schedule import Moment
from commonweight.lifelong.methods.mos import Pulled, refined


def test_each_step_goes_a_share_of_the_way_to_the_mean():
    mean, theta = {"p": torch.tensor([1.0, 1.0])}, torch.tensor([0.0, 2.0])
    _, edit = Pulled(mean, 0.1).after(Moment(1, 2, {"p": theta}, {}, {}), {})
    assert torch.allclose(edit.values["p"], 0.9 * theta + 0.1 * mean["p"])


def test_a_row_asks_again_until_the_answer_stays():
    votes = torch.tensor([[1, 2, 2], [0, 0, 0], [1, 0, 2]])  # the last row goes round in a circle
    assert refined(torch.tensor([0, 2, 0]), votes, 4).tolist() == [2, 0, 0]
    assert refined(torch.tensor([0, 2, 0]), votes, 1).tolist() == [1, 0, 1]


def test_the_code_pulls_thirteen_times_where_the_paper_pulls_once():
    """backbone/vit_mos.py @8d5e07c: `reweight_adapter` goes over all twelve blocks in place, each block's forward calls
    it, and the step does once more: of the distance to the mean .9^13 is left. The paper's is .9, and ours."""
    blocks, m = 12, 0.1
    mean, theta = torch.zeros(blocks, 4), torch.ones(blocks, 4)
    code = theta.clone()
    for _ in range(blocks + 1):
        for b in range(blocks):
            code[b] = (1 - m) * code[b] + m * mean[b]
    _, edit = Pulled({"p": mean}, m).after(Moment(1, 2, {"p": theta}, {}, {}), {})
    assert torch.allclose(code, torch.full_like(code, 0.9**13)) and abs(float(code[0, 0]) - 0.254) < 1e-3
    assert torch.allclose(edit.values["p"], torch.full_like(theta, 0.9))
