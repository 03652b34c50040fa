"""Threads of a merge, beside those of torch."""

from __future__ import annotations

import torch

from commonweight.merge.stream.pool import Pool


def test_torch_has_one_thread_but_for_whole_tensors():
    """Its own would wait by turning, on processors that the workers need."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with Pool(2) as pool:
            assert torch.get_num_threads() == 1
            assert list(pool.map(lambda _: torch.get_num_threads(), range(3))) == [1, 1, 1]
            found = []
            for n in pool.alone(lambda _: torch.get_num_threads(), range(2)):
                found.append((n, torch.get_num_threads()))
            assert found == [(2, 1), (2, 1)]
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
