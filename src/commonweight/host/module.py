"""The model as one tenant, for tools that want an nn.Module with the parameters inside it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from .host import Host
    from .tenant import Tenant


class TenantModule(nn.Module):
    """Runs the host's model under one tenant. `state_dict` holds the tenant's pools and nothing of the base."""

    def __init__(self, host: Host, tenant: Tenant):
        super().__init__()
        self.base = host.model
        self.pools = nn.ParameterDict({n.replace(".", "/"): p for n, p in tenant.named_parameters()})
        object.__setattr__(self, "_host", host)
        object.__setattr__(self, "_name", tenant.name)
        self.forward.__func__.__signature__ = None  # type: ignore[attr-defined]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with self._host.route(self._name):
            return self.base(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name in ("base", "pools"):
                raise
            return getattr(super().__getattr__("base"), name)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        full = super().state_dict(*args, **kwargs)
        prefix = kwargs.get("prefix", "")
        return {k: v for k, v in full.items() if k.startswith(f"{prefix}pools.")}
