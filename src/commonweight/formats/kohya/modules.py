"""One module of such a file as a change of its weight. Convolutions as matrices (out, inp k k).

Layouts: networks/lora.py of kohya's sd-scripts; lycoris/modules of lycoris-lora 4.1.3, its forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from ...core import CommonweightError
from ..changes import Change
from ..tensors import pair

Parts = Mapping[str, Tensor]
Weight = Callable[[], Tensor]  # of the base, (out, inp), where a kind needs it


def change(where: str, parts: Parts, weight: Weight) -> Change:
    """Raises: CommonweightError for parts that make no kind of adapter, and for shapes that do not fit each other."""
    found = next((read for slot, read in _KINDS.items() if slot in parts), None)
    if found is None:
        raise CommonweightError(f"{where}: {', '.join(sorted(parts))} are the parts of no adapter that is known here")
    try:
        out = found(where, parts, weight)
        if (m := parts.get("dora_scale")) is not None:
            out = _turned(where, out, m, weight)
        if any(t is not None and not t.dim() for t in (out.B, out.m, out.delta, out.bias)):
            raise ValueError("a single number has no rows")
        return out
    except CommonweightError:
        raise
    except (
        RuntimeError,
        IndexError,
        TypeError,
        ValueError,
        ZeroDivisionError,
    ) as e:  # of torch: shapes that cannot be multiplied
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in parts.items())
        raise CommonweightError(f"{where}: its parts do not fit each other ({shapes})") from e


def scale(where: str, parts: Parts, rank: int) -> float:
    """alpha / rank; 1 where there is no alpha."""
    alpha = parts.get("alpha")
    if alpha is None:
        return 1.0
    if alpha.numel() != 1 or rank < 1:
        raise CommonweightError(f"{where}: alpha is {tuple(alpha.shape)}; wanted one number")
    return float(alpha) / rank


def _lora(where: str, parts: Parts, weight: Weight) -> Change:
    """B A, of a convolution (r, inp, k, k) and (out, r, 1, 1); with a mid (r, r, k, k) between them."""
    A, B, mid = parts.get("lora_down.weight"), parts.get("lora_up.weight"), parts.get("lora_mid.weight")
    if A is not None and mid is not None:
        A = torch.einsum("mn...,ni->mi...", mid, A.flatten(1))
    A, B = pair(where, None if A is None else A.flatten(1), None if B is None else B.flatten(1))
    return Change(A, B, scale(where, parts, len(A)))


def _loha(where: str, parts: Parts, weight: Weight) -> Change:
    """(w1a w1b) * (w2a w2b), entry by entry: a product of two of rank r has rank r r, and factors at hand."""
    w1a, w1b, w2a, w2b = (_got(where, parts, f"hada_w{i}_{f}") for i in "12" for f in "ab")
    s = scale(where, parts, len(w1b))
    if "hada_t1" in parts or "hada_t2" in parts:
        w1, w2 = (
            _tucker(_got(where, parts, f"hada_t{i}"), a, b).flatten(1) for i, a, b in (("1", w1a, w1b), ("2", w2a, w2b))
        )
        return Change(delta=s * w1 * w2)
    r = len(w1b) * len(w2b)
    if r * (len(w1a) + w1b.shape[1]) >= len(w1a) * w1b.shape[1]:
        return Change(delta=s * (w1a @ w1b) * (w2a @ w2b), dense=True)
    A = (w1b[:, None] * w2b[None]).reshape(r, -1)
    return Change(A, (w1a[:, :, None] * w2a[:, None, :]).reshape(-1, r), s)


def _lokr(where: str, parts: Parts, weight: Weight) -> Change:
    """kron(w1, w2). Its factors are the products of those of w1 and w2."""
    ranks, w = [], []
    for i in "12":
        whole, a, b, t = (parts.get(f"lokr_{n}") for n in (f"w{i}", f"w{i}_a", f"w{i}_b", f"t{i}"))
        if whole is None:
            a, b = _got(where, parts, f"lokr_w{i}_a"), _got(where, parts, f"lokr_w{i}_b")
            ranks.append(len(b))
            whole = a @ b if t is None and b.dim() == 2 and a.shape[1] == len(b) else (
                _tucker(t, a, b) if t is not None else a @ b.flatten(1)
            )  # fmt: skip
        w.append(whole.flatten(1))
    s = scale(where, parts, ranks[0]) if ranks else 1.0
    (B1, A1), (B2, A2) = (_factors(one) for one in w)
    shape = w[0].shape[0] * w[1].shape[0], w[0].shape[1] * w[1].shape[1]
    if len(A1) * len(A2) * sum(shape) >= shape[0] * shape[1]:
        return Change(delta=s * _kron(*w), dense=True)
    return Change(_kron(A1, A2), _kron(B1, B2), s)


def _factors(w: Tensor) -> tuple[Tensor, Tensor]:
    """(B, A) of the exact rank of a small matrix."""
    u, s, v = torch.linalg.svd(w.double(), full_matrices=False)
    r = max(1, int((s > s[0] * 1e-7).sum()))
    root = s[:r].sqrt()
    return (u[:, :r] * root).float(), (root[:, None] * v[:r]).float()


def _kron(a: Tensor, b: Tensor) -> Tensor:
    """torch.kron views what it has multiplied, which some strides of thin factors do not allow (torch 2.13)."""
    return (a[:, None, :, None] * b[None, :, None, :]).reshape(len(a) * len(b), -1)


def _full(where: str, parts: Parts, weight: Weight) -> Change:
    return Change(delta=_got(where, parts, "diff").flatten(1), bias=parts.get("diff_b"))


def _norm(where: str, parts: Parts, weight: Weight) -> Change:
    return Change(delta=_got(where, parts, "w_norm"), bias=parts.get("b_norm"))


def _glora(where: str, parts: Parts, weight: Weight) -> Change:
    """W a1 a2 + b1 b2."""
    if "bm.weight" in parts:
        raise CommonweightError(f"{where}: GLoRA of a convolution with a kernel of its own (bm) is not read")
    a1, a2, b1, b2 = (_got(where, parts, f"{n}.weight").flatten(1) for n in ("a1", "a2", "b1", "b2"))
    s = scale(where, parts, a1.shape[1])
    return Change(torch.cat([a2, b2]), torch.cat([weight() @ a1, b1], 1), s)


def _ia3(where: str, parts: Parts, weight: Weight) -> Change:
    """Columns (on_input) or rows of W times 1 + weight."""
    w, gain = weight(), _got(where, parts, "weight").flatten()
    return Change(delta=w * (gain if bool(parts["on_input"].flatten()[0]) else gain[:, None]))


def _oft(where: str, parts: Parts, weight: Weight) -> Change:
    """Rows in blocks, turned by R^T with R = (1 + q) / (1 - q), q = b - b^T, then rescaled."""
    blocks, w = parts["oft_blocks"].double(), weight().double()
    if blocks.dim() != 3:
        raise CommonweightError(
            f"{where}: BOFT of LyCORIS ({tuple(blocks.shape)}) is not read; OFT is, one factor of blocks"
        )
    q, limit = blocks - blocks.mT, scale(where, parts, 1) * len(w) if "alpha" in parts else 0.0
    if limit > 0 and (norm := q.norm() + 1e-8) > limit:
        q = q * limit / norm
    eye = torch.eye(q.shape[-1], dtype=q.dtype)
    R = (eye + q) @ torch.linalg.inv(eye - q)
    new = torch.einsum("knm,kni->kmi", R, w.view(*R.shape[:2], -1)).reshape(w.shape)
    if (rescale := parts.get("rescale")) is not None:
        new = new * rescale.double().reshape(-1, 1)
    return Change(delta=(new - w).float(), dense=True)


def _turned(where: str, out: Change, m: Tensor, weight: Weight) -> Change:
    """With the lengths of rows (out, 1) or columns (1, inp) set, as DoRA does."""
    rows = m.dim() >= 2 and m.shape[1] == 1
    if rows and out.A is not None:
        return out._replace(m=m.flatten())
    w = weight()
    delta = out.delta if out.A is None or out.B is None else out.scale * (out.B @ out.A)
    new = (w if delta is None else w + delta).double()
    if not rows and m.numel() != w.shape[1]:
        raise CommonweightError(f"{where}: dora_scale {tuple(m.shape)} fits no row and no column of {tuple(w.shape)}")
    new = (
        new
        * (m.double().flatten()[:, None] if rows else m.double().flatten())
        / new.norm(dim=1 if rows else 0, keepdim=True)
    )
    return Change(delta=(new - w).float(), bias=out.bias, dense=True)


def _tucker(t: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """t (r, r, k, k), a (r, out), b (r, inp) -> (out, inp, k, k)."""
    return torch.einsum("ij...,ip,jr->pr...", t, a, b)


def _got(where: str, parts: Parts, slot: str) -> Tensor:
    if slot not in parts:
        raise CommonweightError(f"{where}: has no {slot}; the file is not whole, copy it again")
    return parts[slot]


_KINDS: dict[str, Callable[[str, Parts, Weight], Change]] = {
    "lora_up.weight": _lora, "lora_down.weight": _lora, "hada_w1_a": _loha, "hada_w1_b": _loha, "lokr_w1": _lokr,
    "lokr_w1_a": _lokr, "lokr_w2": _lokr, "diff": _full, "w_norm": _norm, "a1.weight": _glora, "on_input": _ia3,
    "oft_blocks": _oft,
}  # fmt: skip
SLOTS = (
    "lora_up.weight", "lora_down.weight", "lora_mid.weight", "alpha", "dora_scale", "hada_w1_a", "hada_w1_b",
    "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a",
    "lokr_w2_b", "lokr_t1", "lokr_t2", "diff", "diff_b", "w_norm", "b_norm", "a1.weight", "a2.weight", "b1.weight",
    "b2.weight", "bm.weight", "on_input", "weight", "oft_blocks", "rescale",
)  # fmt: skip
