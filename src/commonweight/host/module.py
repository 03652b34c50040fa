"""The model as one tenant, for tools that want an nn.Module with the parameters inside it."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from .host import Host
    from .tenant import Tenant


class Routed:
    """The model's forward under a tenant, with the model's own signature: trainers choose columns by it.

    A callable object, not a closure: a deep copy of the module runs the copy.
    """

    def __init__(self, module: TenantModule):
        self.module = module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self.module._host.route(self.module._name):
            return self.module.base(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        return inspect.signature(self.module.base.forward)


class TenantModule(nn.Module):
    """Runs the host's model under one tenant. `state_dict` holds the tenant's pools and nothing of the base.

    `load_state_dict` takes and checks the pools alone, in DistributedDataParallel too; it never writes the base.
    """

    def __init__(self, host: Host, tenant: Tenant):
        super().__init__()
        self.base = host.model
        self.pools = nn.ParameterDict({n.replace(".", "/"): p for n, p in tenant.named_parameters()})
        self.register_load_state_dict_pre_hook(keep_base)
        self.register_load_state_dict_post_hook(pools_alone)
        object.__setattr__(self, "_host", host)
        object.__setattr__(self, "_name", tenant.name)
        object.__setattr__(self, "forward", Routed(self))

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
        for k in [k for k in full if k.startswith(f"{prefix}base.")]:
            del full[k]  # in place: a wrapper's own dict may be the one that is filled here
        return full


def keep_base(
    module: nn.Module, state: dict[str, Any], prefix: str, _: Any, strict: bool, missing: list[str],
    unexpected: list[str], errors: list[str],
) -> None:  # fmt: skip
    """Before loading: numbers of the base are not expected, and not written."""
    for k in [k for k in state if k.startswith(f"{prefix}base.")]:
        del state[k]
        if strict:
            unexpected.append(k)


def pools_alone(module: nn.Module, keys: Any) -> None:
    """After loading: what lacks of the base is no lack. A wrapper's prefix stands before the names."""
    base = tuple(f"base.{n}" for n in module.base.state_dict())  # type: ignore[union-attr,operator]
    keys.missing_keys[:] = [k for k in keys.missing_keys if not _ends(k, base)]


def _ends(key: str, names: tuple[str, ...]) -> bool:
    return any(key == n or key.endswith(f".{n}") for n in names)
