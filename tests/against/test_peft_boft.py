"""BOFT against PEFT, whose many-factor path wants a CUDA extension: its one function is stood in for."""

import warnings

import pytest
import torch
from peft import BOFTConfig, PeftModel
from peft.tuners.boft import layer

import commonweight as cw
from tests.against.wrapped import agree
from tests.laws.subjects import stir
from tests.models import make


class Extension:
    """forward((N, D, H, H)) gives N block-diagonal matrices."""

    def forward(self, blocks):
        return [torch.stack([torch.block_diag(*row) for row in blocks])]


def compare(kind, targets, factors, theirs, ours):
    config = BOFTConfig(target_modules=targets, boft_n_butterfly_factor=factors, **theirs)
    agree(
        kind, config, "boft_", lambda site, rest, p: (f"{site}.{rest[0]}", p.squeeze(-1) if rest[0] == "s" else p),
        "boft", "|".join(f"*.{t}" for t in targets), factors=factors, **ours,
    )  # fmt: skip


@pytest.mark.parametrize("kind, targets", [("llama", ["q_proj", "v_proj", "down_proj"]), ("bert", ["query", "value"])])
@pytest.mark.parametrize("factors", [1, 2, 3])
@pytest.mark.parametrize(
    "theirs, ours",
    [({"boft_block_size": 4}, {"block_size": 4}), ({"boft_block_size": 0, "boft_block_num": 4}, {"blocks": 4})],
)
def test_boft(monkeypatch, kind, targets, factors, theirs, ours):
    monkeypatch.setattr(layer, "_FBD_CUDA", Extension())
    compare(kind, targets, factors, theirs, ours)


def test_without_the_extension(monkeypatch):
    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: None)
    compare("bert", ["key", "value"], 1, {"boft_block_size": 8}, {"block_size": 8})


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.parametrize("factors", [1, 2])
def test_of_several_factors_the_folder_is_written_with_a_warning(tmp_path, monkeypatch, factors):
    """Without the extension PEFT makes one factor, and stops at the shapes."""
    monkeypatch.setattr(layer, "get_fbd_cuda", lambda: None)
    model, batch = make("bert")
    host = cw.Host(model)
    stir(host.add("t", "boft", factors=factors, block_size=4, sites="*.query"))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        host.export_peft("t", tmp_path / "t")
    assert [str(w.message).partition(":")[0] for w in said] == ["boft factors=2"] * (factors > 1)
    with torch.no_grad(), host.route("t"):
        wanted = model(**batch).last_hidden_state
    host.import_peft("again", tmp_path / "t")
    with torch.no_grad(), host.route("again"):
        assert model(**batch).last_hidden_state.equal(wanted)
    host.close()
    if factors > 1:
        with pytest.raises(RuntimeError, match="size mismatch"):
            PeftModel.from_pretrained(model, tmp_path / "t")
    else:
        with torch.no_grad():
            theirs = PeftModel.from_pretrained(model, tmp_path / "t").eval()(**batch).last_hidden_state
        torch.testing.assert_close(theirs, wanted, rtol=1e-5, atol=1e-5)
