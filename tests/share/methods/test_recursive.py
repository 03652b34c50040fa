"""Recursive and relaxed: maps and first values by hand, identities, counts."""

import pytest
import torch

from commonweight import CommonweightError, share
from tests.share.deep import KINDS, answer, far, llama

ORDERS = {
    "cycle": [0, 1, 2, 0, 1, 2], "sequence": [0, 0, 1, 1, 2, 2],
    "middle_cycle": ["a", 0, 1, 0, 1, "b"], "middle_sequence": ["a", 0, 0, 1, 1, "b"],
}  # fmt: skip


def q(model, depth):
    return model.model.layers[depth].self_attn.q_proj.weight


@pytest.mark.parametrize("order", ORDERS)
def test_which_depths_read_one_tensor(order):
    small = share.share(llama(), "recursive", loops=2, order=order)
    ids = [id(q(small, d)) for d in range(6)]
    want = ORDERS[order]
    for i in range(6):
        for j in range(6):
            assert (ids[i] == ids[j]) == (want[i] == want[j])
    assert len({id(b) for b in small.model.layers}) == 6


def test_first_values_by_hand():
    model = llama()
    w = [q(model, d).detach() for d in range(6)]
    for init, want in {
        "stepwise": [w[0], w[2], w[5]],  # round(linspace(0, 5, 3))
        "average": [(w[0] + w[3]) / 2, (w[1] + w[4]) / 2, (w[2] + w[5]) / 2],
        "lower": w[:3], "upper": w[3:],
    }.items():  # fmt: skip
        small = share.share(model, "recursive", loops=2, init=init)
        for unit, value in enumerate(want):
            assert torch.equal(q(small, unit), value), init
    sequence = share.share(model, "recursive", loops=2, order="sequence", init="average")
    assert torch.equal(q(sequence, 3), (w[2] + w[3]) / 2)
    drawn = share.share(model, "recursive", loops=2, init="random", seed=3)
    taken = [next(i for i, v in enumerate(w) if torch.equal(v, q(drawn, u))) for u in range(3)]
    assert taken == sorted(set(taken))


def test_stepwise_between_the_ends_counts_from_the_first_layer():
    """round(linspace(1, L - 2, K)), where halves go to even numbers: layer 4 of 1, 3.5, 6."""
    model = llama(8)
    small = share.share(model, "recursive", loops=2, order="middle_cycle")
    for depth, layer in {1: 1, 2: 4, 3: 6, 5: 4}.items():
        assert torch.equal(q(small, depth), q(model, layer))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("init", ["stepwise", "average"])
def test_full_rank_is_the_original(kind, init):
    model = KINDS[kind]()
    small = share.share(model, "recursive", loops=3, init=init, relax=64, share_norms=False, share_biases=False)
    assert far(answer(small), answer(model)) < 1e-5


def test_the_update_is_the_best_of_its_rank():
    """A = V_r^T, B = U_r S_r of W_l - W'; where there is no difference, A is drawn and B is zero."""
    model = llama()
    small = share.share(model, "recursive", loops=2, init="lower", relax=4)
    layer = small.model.layers[4].mlp.down_proj
    difference = model.model.layers[4].mlp.down_proj.weight - model.model.layers[1].mlp.down_proj.weight
    u, s, v = torch.linalg.svd(difference.detach(), full_matrices=False)
    assert torch.allclose(layer.B @ layer.A, (u[:, :4] * s[:4]) @ v[:4], atol=1e-6)
    assert torch.allclose(layer.A @ layer.A.T, torch.eye(4), atol=1e-5)
    same = small.model.layers[1].mlp.down_proj
    assert not same.B.any() and same.A.std() > 0.01
    zero = share.share(model, "recursive", loops=2, relax=4, relax_init="zero").model.layers[4].mlp.down_proj
    assert not zero.B.any()


def test_layers_are_dropped_where_loops_do_not_fill_the_depth():
    small = share.share(llama(7), "recursive", loops=2)
    assert small.config.num_hidden_layers == len(small.model.layers) == 6
    middle = share.share(llama(9), "recursive", loops=3, order="middle_cycle")
    assert len(middle.model.layers) == 8  # 3 loops of 2, and both ends


@pytest.mark.parametrize("kind", KINDS)
def test_counts_are_those_of_the_tensors(kind):
    model = KINDS[kind]()
    for options in ({}, {"relax": 3}, {"share_norms": False}, {"order": "middle_cycle"}, {"loops": 6}):
        small = share.share(model, "recursive", **options)
        layout = share.layout(model, "recursive", **options)
        blocks = small.get_submodule(share.anatomy(small).path)
        there = {id(p): p for p in blocks.parameters()}.values()
        assert sum(p.numel() for p in there) == layout.count()
        assert sum(p.numel() * 4 for p in there) == layout.nbytes


def test_one_loop_is_the_model_itself():
    model = llama()
    assert far(answer(share.share(model, "recursive", loops=1)), answer(model)) == 0


def test_norms_of_their_own():
    model = llama()
    small = share.share(model, "recursive", loops=2, share_norms=False)
    norms = {id(b.input_layernorm.weight) for b in small.model.layers}
    assert len(norms) == 6
    assert torch.equal(small.model.layers[3].input_layernorm.weight, model.model.layers[3].input_layernorm.weight)


def test_errors():
    with pytest.raises(CommonweightError, match=r"recursive: loops=7 of 6 layers leave no unit; at most 6 loops"):
        share.share(llama(), "recursive", loops=7)
    with pytest.raises(CommonweightError, match="unknown sharing method 'recursiv'; did you mean 'recursive'"):
        share.share(llama(), "recursiv")
    with pytest.raises(CommonweightError, match="unknown option of Recursive 'loop'"):
        share.share(llama(), "recursive", loop=2)
