"""The commons: a folder in which tenants share pools.

    store.json                                       {"commons":"commonweight","format":1}
    lock                                             held by whoever writes
    pools/ab/<hash>.safetensors                      one pool, named by its content, written once
    tenants/<name>@<version>.<digest>.json           one version of one tenant; never changed
    index.txt                                        a copy of the manifests; derived, may be deleted

A tenant is there when its manifest is, and a manifest is written after its pools: that rename is the one moment at
which a publish happens. Writers exclude each other with a lock that the system frees when they die. Readers take no
lock: they open every pool before they use one, and look again under the lock when a file has just gone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..core import CommonweightError, safe, unknown
from ..formats import atomic
from . import index, pool
from .diff import Diff, diff
from .listing import Record, records
from .manifest import Entry, Manifest, Ref
from .pool import Content, Gone
from .verify import Problem, problems

if TYPE_CHECKING:
    from torch import Tensor

    from ..formats.coding import Choice
    from ..host import Host

FORMAT = 1
STORE = b'{"commons":"commonweight","format":1}\n'
PATIENCE = 600.0  # seconds that a writer waits for another


class Freed(NamedTuple):
    """What a gc took: pools, versions of tenants, files that killed writers left; bytes of all together."""

    pools: int
    versions: int
    torn: int
    nbytes: int


class Fetched:
    """A tenant of the store with all its pools open: what `Host.load_from` takes."""

    def __init__(self, where: str, manifest: Manifest, pools: Mapping[str, pool.Mapped]):
        self.where, self.name = where, manifest.name
        self.header: Mapping[str, Any] = manifest.tenant
        self.hashes: Mapping[str, str] = {k: r.hash for k, r in manifest.pools.items()}
        self._refs, self._pools = manifest.pools, pools

    def content(self, tensor: str) -> Content:
        ref = self._refs[tensor]
        found = self._pools[ref.hash].content()
        if (found.dtype, found.shape) != (ref.dtype, ref.shape):
            raise CommonweightError(f"{self.where}: pool {tensor} is {found.dtype} {found.shape}, wanted {ref[1:]}")
        return found

    def read(self, tensor: str) -> Tensor:
        """A new tensor, every bit checked."""
        return self.content(tensor).tensor()


class Commons:
    """A store of tenants that share pools, in one folder.

    folder: is made when it does not exist, unless make=False. Any number of processes may use it at once. Nothing but
    loading into a host and reading or writing tenant files needs a model or torch.
    Raises: CommonweightError for a folder that is something else, and for a store of a newer version.
    """

    def __init__(self, folder: str | os.PathLike[str], *, make: bool = True):
        self.folder = Path(folder)
        self._tenants = self.folder / "tenants"
        if make and not (self.folder / "store.json").exists():
            self._make()
        self._look()

    def _make(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise CommonweightError(f"{self.folder} is a file; a store is a folder")
        above = self.folder.absolute().parent
        if not above.is_dir():
            raise CommonweightError(f"{self.folder}: the folder {above} does not exist; make it first")
        self.folder.mkdir(exist_ok=True)
        ours = ("lock", "pools", "tenants", "store.json")  # of another process that makes it, or was killed doing so
        strange = [n for n in os.listdir(self.folder) if n not in ours and not n.startswith(".store.json.")]
        if strange:
            raise CommonweightError(
                f"{self.folder} is no store and holds {min(strange)}; name a new or an empty folder"
            )
        for part in ("pools", "tenants"):
            (self.folder / part).mkdir(exist_ok=True)
        atomic.write(self.folder / "store.json", STORE)  # last: a folder without it is no store yet
        atomic.sync(above)

    def _look(self) -> None:
        at = self.folder / "store.json"
        try:
            raw = at.read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            raise CommonweightError(f"{self.folder} is no store; `commonweight store init` makes one") from None
        if raw == STORE:
            return
        try:
            version = json.loads(raw)["format"]
        except (ValueError, KeyError, TypeError):
            version = None
        if isinstance(version, int) and version > FORMAT:
            raise CommonweightError(
                f"{self.folder}: a store of format {version}; this version reads up to {FORMAT}: upgrade commonweight"
            )
        raise CommonweightError(f"{at}: altered; it must read {STORE.decode().strip()}")

    def __repr__(self) -> str:
        return f"Commons({str(self.folder)!r})"

    # -- writing ---------------------------------------------------------------------------------------------------

    def publish(
        self,
        host: Host,
        name: str,
        *,
        metrics: Mapping[str, Any] | None = None,
        parents: Sequence[str] = (),
        codec: Choice = None,
    ) -> Manifest:
        """Writes a tenant of the host, under its name; again: a new version. When it returns, it is on disk.

        parents: tenants of this store from which it was made, ``"legal"`` or ``"legal@2"``. codec: as for `Host.save`;
        tenants of one common share its pools in the store when all are published with one codec. Cost: its pools that
        the store does not have yet, and a manifest.
        """
        from ..host.files import encode

        return self._publish(name, f"tenant {name}", encode(host, host[name], metrics, codec), None, parents)

    def publish_file(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        parents: Sequence[str] = (),
    ) -> Manifest:
        """`publish`, from a tenant's file; needs no model. name: without it, the file's. metrics: not its own."""
        from ..formats import native

        path = Path(path)
        native.read_header(path)  # for its errors
        return self._publish(path.stem if name is None else name, str(path), path.read_bytes(), metrics, parents)

    def _publish(
        self, name: str, where: str, data: bytes, metrics: Mapping[str, Any] | None, parents: Sequence[str]
    ) -> Manifest:
        safe(name)
        header, tensors = _split(where, data)
        if metrics is not None:
            header = {**header, "metrics": dict(metrics)}
        parents = tuple(self._entry(p).label for p in parents)
        refs = {k: Ref(pool.address(c), c.dtype, c.shape) for k, c in tensors.items()}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        with self._locked():
            version = max((e.version for e in self._entries() if e.name == name), default=0) + 1
            m = Manifest(name, version, header, refs, parents, now)
            file = m.file  # before anything is written: metrics may be no JSON
            for k, ref in refs.items():
                pool.write(self.folder, ref.hash, tensors[k])
            atomic.write(self._tenants / file, m.text)
            index.append(self.folder, m)
        return m

    def remove(self, name: str) -> None:
        """Forgets a tenant, or one version of it (``"legal@2"``). Its pools stay until `gc`."""
        with self._locked():
            self._entry(name)
            gone = [e for e in self._entries() if name in (e.name, e.label)]
            for e in sorted(gone, key=lambda e: e.version):  # the newest last: until then nothing has changed
                (self._tenants / e.file).unlink()
            atomic.sync(self._tenants)

    def gc(self, keep: int | None = None) -> Freed:
        """Deletes pools that no tenant reads, and what killed writers left. keep: only so many versions per tenant.

        Refuses while a manifest is damaged: what it reads is not known. Never takes what a publish or a reader in
        flight needs: a publish holds the lock, a reader has its files open or looks again.
        """
        if keep is not None and keep < 1:
            raise CommonweightError(f"keep={keep}: wanted 1 or more versions; `remove` takes tenants away")
        with self._locked():
            entries = self._entries()
            manifests = {e: self._manifest(e) for e in entries}
            old = [e for e in entries if keep is not None and e.version not in _newest(entries, e.name, keep)]
            torn, nbytes = 0, 0
            for e in old:
                nbytes += len(manifests.pop(e).text)
                (self._tenants / e.file).unlink()
            atomic.sync(self._tenants)
            needed = {r.hash for m in manifests.values() for r in m.pools.values()}
            pools = 0
            for at in [*self.folder.glob("pools/??/*"), *self._tenants.iterdir(), *self.folder.iterdir()]:
                is_pool = at.parent.parent.name == "pools" and pool.HASH.fullmatch(at.name.removesuffix(".safetensors"))
                left = at.name.startswith(".") and at.name.rpartition(".")[0].endswith(
                    (".json", ".safetensors", ".txt")
                )
                if left or (is_pool and at.name.removesuffix(".safetensors") not in needed):
                    size = at.stat().st_size
                    try:
                        at.unlink()
                    except PermissionError:  # Windows, while a reader has it open: next time
                        continue
                    nbytes, torn, pools = nbytes + size, torn + left, pools + (not left)
            index.rewrite(self.folder, {e.file: m.text for e, m in manifests.items()})
        return Freed(pools, len(old), torn, nbytes)

    @contextmanager
    def _locked(self, patience: float = PATIENCE) -> Iterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=patience, poll_interval=0.01)
        except Timeout:
            raise CommonweightError(f"{self.folder}: another process writes since {patience:g} s; try again") from None
        except OSError as e:
            raise CommonweightError(f"{self.folder}: cannot be written: {e.strerror}") from e
        try:
            yield
        finally:
            lock.release()

    # -- reading ---------------------------------------------------------------------------------------------------

    def list(self) -> list[Record]:
        """Every tenant, by name. Cost: reads one file, the index, and the manifests that it lacks."""
        return self._again(lambda: records(self._texts()))

    def show(self, name: str) -> Record:
        """One tenant's record; ``"legal@2"``: that version's, the marginal bytes still those of the whole tenant."""
        return self._again(lambda: self._show(self._entry(name)))

    def _show(self, entry: Entry) -> Record:
        for record in records(self._texts(), entry.name):
            if record.version == entry.version:
                return record
        raise Gone(f"{self.folder}: {entry.label} was replaced or removed just now")

    def manifest(self, name: str) -> Manifest:
        """The manifest of a tenant's newest version, or of ``"legal@2"``."""
        return self._again(lambda: self._manifest(self._entry(name)))

    def diff(self, a: str, b: str) -> Diff:
        """What two tenants, or two versions (``"legal@1"``, ``"legal@2"``), have in common."""
        return diff(self.manifest(a), self.manifest(b))

    def fetch(self, name: str) -> Fetched:
        """A tenant with all its pools open; nothing is read yet. Raises: CommonweightError naming a missing pool."""
        return self._again(lambda: self._fetch(self._manifest(self._entry(name))))

    def _fetch(self, m: Manifest) -> Fetched:
        where = f"{self.folder}: {m.label}"
        pools: dict[str, pool.Mapped] = {}
        for tensor, ref in m.pools.items():
            try:
                pools[ref.hash] = pools.get(ref.hash) or pool.open_pool(self.folder, ref.hash)
            except CommonweightError as e:
                raise type(e)(f"{where}: tensor {tensor}: {e}") from e
        return Fetched(where, m, pools)

    def export(self, name: str, path: str | os.PathLike[str]) -> Path:
        """Writes a tenant as the one file that `Host.load` reads: the bytes that `Host.save` would have written."""
        from ..formats import native

        got = self.fetch(name)
        return atomic.write(Path(path), native.sealed(got.header, {k: got.read(k) for k in got.hashes}))

    def verify(self) -> list[Problem]:
        """Looks at every bit; an empty list when all is sound. Cost: reads every file once."""
        return [*problems(self.folder, STORE, self._entries())]

    @property
    def nbytes(self) -> int:
        """Bytes of all pools and manifests, also of those that `gc` would take. The index is a copy and not counted."""
        files = [*self.folder.glob("pools/??/*.safetensors"), *self._tenants.glob("*.json")]
        return sum(map(_size, files))

    def __contains__(self, name: object) -> bool:
        return any(e.name == name for e in self._entries())

    def __iter__(self) -> Iterator[str]:
        return iter(sorted({e.name for e in self._entries()}))

    def __len__(self) -> int:
        return len({e.name for e in self._entries()})

    def _entries(self) -> list[Entry]:
        try:
            return [e for e in map(Entry.of, os.listdir(self._tenants)) if e]
        except FileNotFoundError as e:
            raise CommonweightError(f"{self._tenants}: this folder of the store is missing") from e

    def _entry(self, name: str) -> Entry:
        """The newest version of a tenant, or the one that ``name@version`` names."""
        plain, at, number = str(name).partition("@")
        safe(plain)
        entries = self._entries()
        mine = [e for e in entries if e.name == plain]
        if not mine:
            raise unknown("tenant", plain, {e.name for e in entries}, f"in {self.folder}")
        if not at:
            return max(mine, key=lambda e: e.version)
        for e in mine:
            if str(e.version) == number:
                return e
        there = ", ".join(str(e.version) for e in sorted(mine, key=lambda e: e.version))
        raise CommonweightError(f"{self.folder}: {plain} has no version {number!r}; there are {there}")

    def _manifest(self, entry: Entry) -> Manifest:
        at = self._tenants / entry.file
        try:
            return Manifest.read(str(at), entry, at.read_bytes())
        except FileNotFoundError as e:
            raise Gone(f"{at}: this manifest is missing") from e

    def _again(self, look: Any) -> Any:
        """look(), and once more while nobody writes if a file had just gone: then it is missing, or was replaced."""
        try:
            return look()
        except Gone as gone:
            try:
                with self._locked():
                    return look()
            except Gone:
                raise
            except CommonweightError as e:
                if isinstance(e.__cause__, OSError):  # a store that only can be read has no writers
                    raise gone from None
                raise

    def _texts(self) -> list[tuple[Entry, bytes]]:
        """All manifests, through the index; mends an index that lacks many of them, where that can be done now."""
        wanted = {e.file: e for e in self._entries()}
        found, useless = index.read(self.folder, wanted)
        lacking = [e for file, e in wanted.items() if file not in found]
        for e in lacking:
            found[e.file] = self._manifest(e).text
        if len(lacking) > 100 or useless > 100 + len(wanted):
            try:
                with self._locked(0):
                    index.rewrite(self.folder, found)
            except CommonweightError:
                pass
        return [(wanted[file], text) for file, text in found.items()]


def _size(file: Path) -> int:
    """Bytes; none of a file that another process has just taken away."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _newest(entries: Iterable[Entry], name: str, keep: int) -> set[int]:
    return set(sorted(e.version for e in entries if e.name == name)[-keep:])


def _split(where: str, data: bytes) -> tuple[dict[str, Any], dict[str, Content]]:
    """(header, tensors) of a tenant file's bytes. Raises: CommonweightError for NaN, infinity, or a broken file."""
    from safetensors import SafetensorError, deserialize

    from ..formats import native

    try:
        tensors = {k: Content(t["dtype"], tuple(t["shape"]), t["data"]) for k, t in deserialize(data)}
        length = int.from_bytes(data[:8], "little")
        raw = json.loads(data[8 : 8 + length])["__metadata__"]["commonweight"]
    except (SafetensorError, ValueError, KeyError) as e:
        raise CommonweightError(f"{where}: not a whole tenant file ({e})") from e
    header = native.parse_header(where, raw)
    for k, c in tensors.items():
        if c.dtype not in pool.DTYPES:
            raise CommonweightError(
                f"{where}: pool {k} has the dtype {c.dtype}; wanted one of {', '.join(pool.DTYPES)}"
            )
        value = c.tensor()
        if value.is_floating_point() and not value.isfinite().all():
            raise CommonweightError(f"{where}: pool {k} holds NaN or infinity; nothing was published")
    native.verify(where, header, data)
    header.pop("digest", None)  # every file of a store has its own
    return header, tensors
