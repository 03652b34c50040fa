"""A list of methods by name, each with the class of its options."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Generic, Protocol, TypeVar

from .config import build
from .errors import CommonweightError, unknown


class Named(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def config(self) -> type: ...


M = TypeVar("M", bound=Named)


class Registry(Generic[M]):
    """what: one of them, in messages. known: (what is asked for, all) -> the name here, or an error; None: as it is.
    said: the options that a name says by itself; None: no name says any."""

    def __init__(
        self,
        what: str,
        known: Callable[[str, Mapping[str, M]], str] | None = None,
        said: Callable[[str], Mapping[str, Any]] | None = None,
    ):
        self.what, self._known, self._said = what, known, said
        self.all: dict[str, M] = {}

    def add(self, made: M) -> None:
        """Raises: TypeError for a name or a config that is there."""
        if made.name in self.all or any(m.config is made.config for m in self.all.values()):
            raise TypeError(f"the {self.what} {made.name!r} or its config is registered twice")
        self.all[made.name] = made

    def available(self) -> Mapping[str, M]:
        """Every one by name."""
        return dict(sorted(self.all.items()))

    def get(self, name: str) -> M:
        """By its name. Raises: CommonweightError for one that is not there."""
        if name not in self.all:
            if self._known is None:
                raise unknown(self.what, str(name), self.all)
            name = self._known(name, self.all)
        return self.all[name]

    def resolve(self, method: str | Any, options: Mapping[str, Any]) -> tuple[M, Any]:
        """(method, config) from a name with options, or from a config object."""
        if isinstance(method, str):
            found = self.get(method)
            return found, build(found.config, {**(self._said(method) if self._said else {}), **options})
        for found in self.all.values():
            if type(method) is found.config:
                if options:
                    raise CommonweightError(
                        f"{found.name}: give the options {sorted(options)} in the config, not beside it"
                    )
                return found, method
        raise CommonweightError(f"{method!r} is neither a {self.what}'s name nor a {self.what}'s config")


def with_rest(config: type, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a method that passes some on: where its config has ``options``, (name, value) pairs, those that are
    none of its own become such."""
    own = set(config.__dataclass_fields__)  # type: ignore[attr-defined]
    out = {k: v for k, v in options.items() if k in own or "options" not in own}
    if rest := [(k, v) for k, v in options.items() if k not in out]:
        out["options"] = (*out.get("options", ()), *rest)
    return out
