"""Tenants that come and go while a server runs; nobody finds half of one."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import Any

from ...commons import Manifest
from ...core import CommonweightError, safe
from .errors import Refused
from .served import Served
from .settings import Settings

COMING = "_coming"  # what a tenant is called until it is known to be whole


class Roster:
    """Changes to an engine's tenants, one at a time."""

    def __init__(self, engine: Served, settings: Settings):
        self.engine, self.settings = engine, settings
        self._lock = threading.Lock()
        self._files: dict[str, str] | None = None  # of the store, when it was looked at last

    def load(self, name: str, path: str, inplace: bool) -> None:
        """An adapter's folder or a tenant's file, kept in memory until it is unloaded. vLLM's texts and codes."""
        self._alone()
        if not name or not path:
            raise Refused(400, "Both 'lora_name' and 'lora_path' must be provided.", kind="InvalidUserInput")
        self._named(name, "InvalidUserInput")
        with self._lock:
            tenants = self.engine.tenants
            if not inplace and (name in self.engine.host or (tenants.store is not None and name in tenants.store)):
                raise Refused(
                    400,
                    f"The lora adapter '{name}' has already been loaded. If you want to load the adapter in place, set "
                    "'load_inplace' to True.",
                    kind="InvalidUserInput",
                )
            if not os.path.exists(path):  # unlike a Path's, never an error, however long the name is
                raise Refused(404, f"Loading lora {name} failed: No adapter found for {path}", kind="NotFoundError")
            self._enter(name, lambda: self.engine.host.load_adapter(path, COMING))

    def unload(self, name: str) -> None:
        """Its memory is free when the answers that it has begun have ended."""
        self._alone()
        if not name:
            told = "'lora_name' needs to be provided to unload a LoRA adapter."
            raise Refused(400, told, kind="InvalidUserInput")
        with self._lock:
            if not self.engine.unload(name):
                raise Refused(404, f"The lora adapter '{name}' cannot be found.")

    def put(self, name: str, path: Path) -> tuple[Manifest | None, bool]:
        """A tenant's file: published in the store where there is one, else kept in memory. (what the store has of it,
        whether the name is new). Requests that have begun keep the one before."""
        self._named(name, None)
        with self._lock:
            store = self.engine.tenants.store
            new = name not in self.engine.host and (store is None or name not in store)
            if store is None:
                self._alone()
                self._enter(name, lambda: self.engine.host.load(COMING, path))
                return None, new
            try:
                self.engine.host.load(COMING, path)  # before it is published: is it of this model, and whole?
                self.engine.unload(COMING)
            except (CommonweightError, OSError) as e:
                raise Refused(400, f"this is no tenant for this model: {_plain(e, path)}") from e
            try:
                made = store.publish_file(path, name)
            except CommonweightError as e:
                if isinstance(e.__cause__, OSError):
                    raise _store(e) from e
                raise Refused(400, f"this is no tenant for this store: {_plain(e, path)}") from e
            except OSError as e:
                raise _store(e) from e
            self.engine.tenants.drop(name)
            if self._files is not None:
                self._files[name] = made.file
            return made, new

    def delete(self, name: str) -> None:
        """From memory and from the store, with all its versions."""
        with self._lock:
            store = self.engine.tenants.store
            stored = store is not None and name in store
            if store is not None and stored:
                try:
                    store.remove(name)
                except (CommonweightError, OSError) as e:
                    raise _store(e) from e
            # afterwards: a request that comes meanwhile may have loaded it once more
            if not self.engine.unload(name) and not stored:
                raise Refused(404, f"The model `{name}` does not exist.", "model")

    def look(self) -> list[str]:
        """Loaded tenants that the store has in another version by now, or no more: the next request of each loads what
        is there. Cost: a listing of one folder."""
        store = self.engine.tenants.store
        if store is None:
            return []
        with self._lock:
            now = store.newest_files()
            before, self._files = self._files, now
            if before is None:
                return []
            changed = {n for n in {*now, *before} if now.get(n) != before.get(n)}
            if not changed:
                return []
            loaded = {r.name for r in self.engine.tenants.resident() if r.level != "store"}
            # those, too, that are being loaded at this moment: they may have been read before the change
            return [n for n in sorted(changed - loaded) if self.engine.unload(n)]

    def _alone(self) -> None:
        """Raises: Refused where other servers would not know of what is in this one's memory."""
        if self.settings.shared:
            raise Refused(
                400,
                "several replicas answer here, so tenants are changed in their store alone (--store): "
                "PUT or DELETE /v1/tenants/NAME",
            )

    def _named(self, name: str, kind: str | None) -> None:
        try:
            safe(name)
        except CommonweightError as e:
            raise Refused(400, str(e), kind=kind) from e
        if name == COMING:
            raise Refused(
                400, f"{name!r} is what a tenant is called while it is loaded; choose another name", kind=kind
            )
        if name in self.settings.names:
            raise Refused(400, f"The lora adapter '{name}' conflicts with a served base model.", kind=kind)

    def _enter(self, name: str, load: Any) -> None:
        try:
            load()
        except (CommonweightError, OSError) as e:
            raise Refused(400, f"this is no tenant for this model: {e}") from e
        self.engine.tenants.rename(COMING, name)


def _store(e: Exception) -> Refused:
    """What a disk says, without its paths."""
    cause = e if isinstance(e, OSError) else e.__cause__
    why = cause.strerror if isinstance(cause, OSError) and cause.strerror else type(cause or e).__name__
    return Refused(503, f"the store cannot be changed: {why}")


def _plain(e: Exception, path: Path) -> str:
    """Without the name that the file has here."""
    return str(e).replace(str(path), "the file")
