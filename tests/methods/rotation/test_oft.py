"""OFT against its formula, written out block by block."""

import copy

import pytest
import torch

import commonweight as cw
from commonweight.bind import RotateBlocks
from tests.laws.subjects import stir
from tests.models import answer, make

SMALL = {"block_size": 4}
VARIANTS = [{"share": True}, {"neumann": False, "eps": 6e-5}, {"block_size": None, "blocks": 2}]


def skew(vec, b):
    Q = torch.zeros(b, b, dtype=torch.float64)
    values = iter(vec.tolist())
    for i in range(b):
        for j in range(i + 1, b):
            Q[i, j] = next(values)
            Q[j, i] = -Q[i, j]
    return Q


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("neumann", [False, True])
def test_formula(share, neumann):
    host = cw.Host(make("llama")[0])
    tenant = stir(host.add("t", "oft", block_size=4, share=share, neumann=neumann))
    name, eye = "model.layers.1.mlp.down_proj", torch.eye(4, dtype=torch.float64)
    rotations = []
    for vec in tenant.pools[f"{name}.R"].detach():
        Q = skew(vec, 4)
        exact = (eye - Q) @ torch.linalg.inv(eye + Q)
        rotations.append(eye + 2 * Q + 2 * Q @ Q + 2 * Q @ Q @ Q + Q @ Q @ Q @ Q if neumann else exact)
    R = torch.block_diag(*rotations * (16 if share else 1))
    want = host.weight(name).double() @ R.T
    torch.testing.assert_close(host.merged("t")[f"{name}.weight"], want.float())


def test_exact_rotations_are_orthogonal_and_the_series_comes_near():
    vec = 0.05 * torch.randn(6, 28, generator=torch.Generator().manual_seed(0))
    w = torch.eye(48)
    exact = RotateBlocks(8, terms=0).weight(w, R=vec)
    torch.testing.assert_close(exact @ exact.T, w)
    errors = [(RotateBlocks(8, terms=n).weight(w, R=-vec) - exact).abs().max() for n in (2, 4, 6, 8)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 1e-4


def test_a_small_angle_survives_bfloat16():
    bind, x = RotateBlocks(2), torch.ones(1, 2, dtype=torch.bfloat16)
    out = bind.input(torch.tensor([[1.0, 0.0]]).bfloat16(), None, R=torch.tensor([[1e-4]]))
    assert out[0, 1].item() == pytest.approx(2e-4, rel=0.01) and bind.input(x, None, R=torch.zeros(1, 1)).equal(x)


def test_eps_binds_the_rotation_but_not_the_gradient():
    vec = torch.full((4, 6), 0.5, requires_grad=True)
    Q = (RotateBlocks(4, terms=2, eps=0.1).turns(vec) / 2).detach()
    torch.testing.assert_close(Q.norm(dim=(1, 2)), torch.full((4,), 0.1 / 2))
    RotateBlocks(4, terms=2, eps=0.1).turns(vec)[:, 0, 1].sum().backward()
    assert vec.grad is not None and vec.grad[:, 0].eq(2.0).all()


def test_dropout_leaves_blocks_unturned_in_training_only():
    class Training:
        training = True

    torch.manual_seed(0)
    x = torch.randn(1, 400)
    moved = (RotateBlocks(4, dropout=0.5).input(x, Training(), R=torch.ones(100, 6)) != x).view(100, 4).any(1)
    assert 30 < moved.sum() < 70
    Training.training = False
    assert (RotateBlocks(4, dropout=0.5).input(x, Training(), R=torch.ones(100, 6)) != x).view(100, 4).any(1).all()


@pytest.mark.parametrize("pattern", ["*c_attn", "*c_attn[[]1]"])
@pytest.mark.parametrize("method", ["oft", "boft"])
def test_rows_of_a_fused_weight(method, pattern):
    model, batch = make("gpt2")
    plain = copy.deepcopy(model)
    host = cw.Host(model, fused={"*c_attn": 3})
    for i, name in enumerate(("t", "u")):
        stir(host.add(name, method, sites=pattern, block_size=4), i)
    plain.load_state_dict(host.merged("t"), strict=False)
    with torch.no_grad():
        want = answer(plain, batch)
        with host.route("t"):
            torch.testing.assert_close(answer(model, batch), want)
        with host.route(["t", None, "u", "t"]):
            torch.testing.assert_close(answer(model, batch)[[0, 3]], want[[0, 3]])


def test_count_is_the_papers():
    sites = [cw.Site(f"layers.{i}.q_proj", 1024, 4096) for i in range(32)]
    assert cw.plan("oft", sites).count() == 32 * 4096 * (32 - 1) // 2
    assert cw.plan("oft", sites, blocks=512).count() == 32 * 4096 * (8 - 1) // 2
    assert cw.plan("oft", sites, block_size=8, share=True).count() == 32 * 8 * 7 // 2


def test_size_and_number_of_blocks_at_once():
    with pytest.raises(
        cw.CommonweightError, match="OFT: block_size=8 and blocks=4 say the same thing; give one of them"
    ):
        cw.methods.OFT(block_size=8, blocks=4)


def test_widths_that_do_not_split():
    sites = [cw.Site("q_proj", 32, 30)]
    with pytest.raises(
        cw.CommonweightError,
        match=r"oft: q_proj: input width 30 does not split by block_size=4; choose block_size from \[2, 3, 5, 6",
    ):
        cw.plan("oft", sites, block_size=4)
    with pytest.raises(
        cw.CommonweightError,
        match=r"width 30 does not split by blocks=4; choose blocks from \[1, 2, 3, 5, 6, 10, 15\], or exclude the site",
    ):
        cw.plan("oft", sites, blocks=4)
