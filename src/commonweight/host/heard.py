"""What tenants' binds say while a model runs: routers for a loss, states for whoever watches; tenant by tenant, padding
told from tokens."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..core import CommonweightError
from ..methods.said import Said
from .current import Current
from .tenant import Tenant

Watch = Callable[[str, Tensor, Tensor], None]  # of a site: (n, d) of the tenant's own tokens; (n,) 1, and 0 for padding


class Heard:
    """Of the passes within one `listening`. Cost: the routers' logits, E numbers a token and site, and their graph; of
    states that are watched a look at each and at its gradient."""

    def __init__(self) -> None:
        self.watches: dict[int, tuple[Watch, Watch]] = {}  # tenant's number -> (of states, of their gradients)
        self.mask: Tensor | None = None  # of the pass that runs: (B, T), 0 for padding
        self.parts: dict[tuple[int, str], list[Said]] = {}  # (tenant's number, site)

    def begin(self, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> None:
        """A pass of the model begins."""
        mask = kwargs.get("attention_mask")
        if mask is None and len(args) > 1:
            at = [*inspect.signature(model.forward).parameters].index
            try:
                mask = args[at("attention_mask")]
            except (ValueError, IndexError):
                mask = None
        self.mask = mask if isinstance(mask, Tensor) and mask.dim() == 2 else None

    def real(self, x: Tensor) -> Tensor:
        """1 for each token of x (..., d) and 0 for padding: (..., 1). All count where no mask of their shape is known,
        as in the decoder of an encoder-decoder."""
        lead = x.shape[:-1]
        if self.mask is None or (lead != self.mask.shape and lead != (self.mask.numel(),)):
            return torch.ones(*lead, 1, device=x.device)
        return (self.mask != 0).float().reshape(*lead, 1).to(x.device)

    def keep(
        self, site: str, tenants: Sequence[Tenant | None], reader: Tensor | None, real: Tensor, logits: Tensor
    ) -> None:
        """reader: per place, which of the tenants; None: the i-th place is the i-th's, or all places are the one's."""
        for tenant, mine in _each(tenants, reader):
            self._add(tenant, site, logits[mine], real[mine])

    def watch(self, tenant: Tenant, states: Watch, grads: Watch) -> None:
        """What this tenant's binds show from now on, as it is shown, and its gradient in the backward pass."""
        self.watches[tenant.number] = states, grads

    def show(
        self, site: str, tenants: Sequence[Tenant | None], reader: Tensor | None, real: Tensor, states: Tensor
    ) -> None:
        """tenants, reader: as in `keep`. Raises: CommonweightError for states that will have no gradient."""
        for tenant, mine in _each(tenants, reader):
            if tenant is None or tenant.number not in self.watches:
                continue
            if not states.requires_grad:
                raise CommonweightError(
                    f"{site}: nothing in front of it is trained, so that what it is given has no gradient, by which "
                    f"{tenant.method.name} scores it; give the tenant sites in front of it, or leave it out with sites"
                )
            seen, felt = (_shown(w, site, mine, real[mine].reshape(-1)) for w in self.watches[tenant.number])
            seen(states.detach())
            states.register_hook(felt)

    def _add(self, tenant: Tenant | None, site: str, logits: Tensor, real: Tensor) -> None:
        assert tenant is not None
        said = Said(logits.reshape(-1, logits.shape[-1]), real.reshape(-1))
        self.parts.setdefault((tenant.number, site), []).append(said)

    def said(self, tenant: Tenant) -> dict[str, Said]:
        """By site, of all passes."""
        mine = {site: ps for (number, site), ps in self.parts.items() if number == tenant.number}
        return {n: ps[0] if len(ps) == 1 else Said(*map(torch.cat, zip(*ps))) for n, ps in mine.items()}

    def loss(self, tenant: Tenant) -> Tensor:
        """What the tenant's method makes of what its routers said; 0 where it makes nothing of it.

        A mean over the tenant's own tokens, whoever else is in the batch. Raises: CommonweightError where no pass of
        the tenant was heard.
        """
        made = tenant.method.router_loss(tenant.config)
        if made is None:
            return torch.zeros(())
        if not (said := self.said(tenant)):
            raise CommonweightError(
                f"tenant {tenant.name!r} ({tenant.method.name}): its routers said nothing with a gradient here. The "
                "pass has to be within host.listening(); checkpoints need use_reentrant=False"
            )
        return made(said)


def _each(tenants: Sequence[Tenant | None], reader: Tensor | None) -> Iterator[tuple[Tenant | None, Any]]:
    """(tenant, the places that are its)."""
    if len(tenants) == 1:
        yield tenants[0], ...
        return
    for i, tenant in enumerate(tenants):
        yield tenant, slice(i, i + 1) if reader is None else reader == i


def _shown(watch: Watch, site: str, mine: Any, real: Tensor) -> Callable[[Tensor], None]:
    return lambda t: watch(site, t[mine].reshape(-1, t.shape[-1]), real)


class Ear(NamedTuple):
    """Who listens to the binds of one call, and whose tokens are whose; see `Heard.keep`."""

    heard: Heard
    tenants: Sequence[Tenant | None]
    reader: Tensor | None
    real: Tensor

    def tell(self, site: str, logits: Tensor) -> None:
        keep(self.heard, self.tenants, self.reader, self.real, site, logits)

    def show(self, site: str, states: Tensor) -> None:
        if self.heard.watches:
            self.heard.show(site, self.tenants, self.reader, self.real, states)


def keeps(heard: Heard | None) -> bool:
    """Whether what is said now is kept: not in a pass without gradients, nor in one that is recomputed."""
    return heard is not None and torch.is_grad_enabled() and torch._C._current_graph_task_id() == -1


def keep(heard: Heard, tenants: Any, reader: Any, real: Tensor, site: str, logits: Tensor) -> None:
    if math.prod(logits.shape[:-1]) != real.numel():
        raise CommonweightError(
            f"{site}: a router said {tuple(logits.shape)} of {real.numel()} tokens; its loss is not known here. Take "
            "its weight out of the method's options, or leave the site out"
        )
    heard.keep(site, tenants, reader, real, logits)


@contextmanager
def listening(current: Current) -> Iterator[Heard]:
    thread, heard = current.thread, Heard()
    before, thread.heard = thread.heard, heard
    try:
        yield heard
    finally:
        thread.heard = before
