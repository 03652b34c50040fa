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
