"""The model as one tenant or several, for tools that want an nn.Module with the parameters inside it."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from ..core import CommonweightError

if TYPE_CHECKING:
    from .host import Host
    from .tenant import Tenant


class Routed:
    """The model's forward under its tenants, with the model's own signature: trainers choose columns by it.

    Of several tenants, a batch brings one more tensor, ``tenants``: see `TenantModule`.
    A callable object, not a closure: a deep copy of the module runs the copy.
    """

    def __init__(self, module: TenantModule):
        self.module = module

    def __call__(self, *args: Any, tenants: Tensor | None = None, **kwargs: Any) -> Any:
        names = self.module._names
        if len(names) > 1 and tenants is None:
            raise CommonweightError(
                f"this module runs {len(names)} tenants: a batch needs `tenants`, a LongTensor with one Tenant.number "
                "per row"
            )
        for t in self.module._tenants:
            if t.name not in self.module._host or self.module._host[t.name] is not t:
                raise CommonweightError(
                    f"this module was made for a tenant {t.name!r} that has been removed; make it anew with "
                    "host.module(...), and the optimizer too"
                )
        with self.module._host.route(names[0] if tenants is None else tenants):
            return self.module.base(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        own = inspect.signature(self.module.base.forward)
        if len(self.module._names) == 1:
            return own
        *before, last = own.parameters.values() or (None,)
        more = inspect.Parameter("tenants", inspect.Parameter.KEYWORD_ONLY, default=None)
        if last is not None and last.kind is inspect.Parameter.VAR_KEYWORD:
            return own.replace(parameters=[*before, more, last])
        return own.replace(parameters=[*own.parameters.values(), more])


def together(tenants: Sequence[Tenant]) -> dict[str, nn.Parameter]:
    """What several tenants train, every pool once: ``tenant:pool``, and ``common <its name>:pool`` for a shared one.

    Of one tenant alone: by the names of its pools.
    """
    if len(tenants) == 1:
        return dict(tenants[0].named_parameters())
    out = {}
    for t in tenants:
        for name, p in t.named_parameters():
            shared = t.common is not None and name in t.common.pools
            out[f"common {t.common.name}:{name}" if shared and t.common else f"{t.name}:{name}"] = p
    return out


class TenantModule(nn.Module):
    """Runs the host's model under one tenant, or several: then every batch says who reads, in ``tenants``.

    tenants: a LongTensor of `Tenant.number`, one per row (B,) or per token (B, T); -1 is the plain base.
    `state_dict` holds the tenants' pools, a shared one once, and nothing of the base. `load_state_dict` takes and
    checks the pools alone, in DistributedDataParallel too; it never writes the base.
    """

    def __init__(self, host: Host, tenants: Sequence[Tenant]):
        super().__init__()
        self.base = host.model
        self.pools = nn.ParameterDict({n.replace(".", "/"): p for n, p in together(tenants).items()})
        self.register_load_state_dict_pre_hook(keep_base)
        self.register_load_state_dict_post_hook(pools_alone)
        object.__setattr__(self, "_host", host)
        object.__setattr__(self, "_names", [t.name for t in tenants])
        object.__setattr__(self, "_tenants", list(tenants))
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
