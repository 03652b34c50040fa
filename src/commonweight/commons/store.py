"""The commons: a folder in which tenants share pools.

    store.json                                       {"commons":"commonweight","format":2}
    lock                                             held by whoever writes
    pools/ab/<hash>.safetensors                      one pool, or a pack of small ones, named by its content
    blueprints/<hash>.json                           what the manifests of many tenants have in common
    tenants/<name>@<version>.<digest>.json           one version of one tenant; never changed but in its metrics
    tenants/<joint>/<name>@<version>.<digest>.json   the same, published together with others
    index.txt                                        a copy of the manifests; derived, may be deleted

A tenant is there when its manifest is, and a manifest is written after its pools: that rename, of a file or of a folder
of files, is the one moment at which a publish happens. Writers exclude each other with a lock that the system frees
when they die. Readers take no lock: they open every pool before they use one, and look again under the lock when a
file has just gone.
"""

from __future__ import annotations

import builtins
import json
import os
import shutil
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..core import CommonweightError, Unknown, safe, unknown
from ..formats import atomic
from . import blueprint, index, place, pool, streams
from .again import again, once
from .agree import agree
from .diff import Diff, diff
from .fetched import Fetched
from .garbage import Freed, garbage
from .incoming import Given, Incoming, of_file, of_host, take
from .listing import Record, records
from .manifest import JOINT, Entry, Manifest, digest
from .pool import Gone
from .standing import batches, below, free, standing
from .verify import LOST, Problem, problems

if TYPE_CHECKING:
    from ..formats.coding import Choice
    from ..host import Host

PATIENCE = 600.0  # seconds that a writer waits for another


class Commons:
    """A store of tenants that share pools, in one folder.

    folder: it is made if it does not exist, unless make=False; with make="late", only when the first tenant is
    published, after a check that this is possible. Any number of processes may use it at once. A model or torch is
    needed only for loading into a host and for tenant files.
    Raises: CommonweightError for a folder that is something else, and for a store of a newer version.
    """

    def __init__(self, folder: str | os.PathLike[str], *, make: bool | Literal["late"] = True):
        self.folder = Path(folder)
        self._tenants = self.folder / "tenants"
        self._late = make == "late" and not self._there()
        if make and not self._there():
            place.can_be_made(self.folder)
            if make != "late":
                place.make(self.folder)
        if not self._late:
            place.look(self.folder)

    def _there(self) -> bool:
        return (self.folder / "store.json").exists()

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
        """Publishes a tenant of the host under its name. It is on disk when the call returns.

        If the name exists with other content, this makes a new version. With the same pools and settings it does not,
        but given metrics replace the old ones.
        parents: tenants of this store from which it was made, ``"legal"`` or ``"legal@2"``. codec: as for `Host.save`;
        tenants of one common share its pools in the store when all are published with one codec. Cost: its pools that
        the store does not have yet, and a manifest.
        """
        return self._publish([of_host(host, name, metrics, codec, (*parents, *self._below(host, name)))])[0]

    def _below(self, host: Host, name: str) -> builtins.list[str]:
        def there(name: str) -> Iterator[Fetched]:
            entries = [] if self._late and not self._there() else self._entries()
            for e in sorted((e for e in entries if e.name == name), key=lambda e: -e.version):
                yield self.fetch(e.label)

        return below(host, name, there)

    def publish_all(
        self,
        host: Host,
        names: Iterable[str],
        *,
        metrics: Mapping[str, Mapping[str, Any]] | None = None,
        parents: Mapping[str, Sequence[str]] | None = None,
        codecs: Mapping[str, Choice] | None = None,
        own: Mapping[str, Sequence[str]] | None = None,
    ) -> dict[str, Manifest]:
        """Publishes several tenants of the host at once. Readers see all of them or none, also after a kill.

        Use it for a common that was trained again, with all its tenants. Those that stand on others of them come after
        these, in a second step. metrics, parents, codecs, own: by name of a published tenant; another name is an error.
        own: the tensors of its file that no other tenant has; all others become pools of their own, which are there
        once for all tenants that have them.
        """
        names = list(names)
        metrics, parents, codecs, own = metrics or {}, parents or {}, codecs or {}, own or {}
        for name in (*metrics, *parents, *codecs, *own):
            if name not in names:
                raise unknown("tenant to publish", name, names)
        out: dict[str, Manifest] = {}
        for some in batches(host, names):
            given = (
                of_host(host, n, metrics.get(n), codecs.get(n), (*parents.get(n, ()), *self._below(host, n)))._replace(
                    own=own.get(n)
                )
                for n in some
            )
            out |= {m.name: m for m in self._publish(given)}
        return {n: out[n] for n in names}

    def publish_file(
        self,
        path: str | os.PathLike[str],
        name: str | None = None,
        *,
        metrics: Mapping[str, Any] | None = None,
        parents: Sequence[str] = (),
    ) -> Manifest:
        """`publish`, from a tenant's file; needs no model. name: without it, the file's. metrics: not its own."""
        return self._publish([of_file(Path(path), name, metrics, parents)])[0]

    def publish_files(self, paths: Iterable[str | os.PathLike[str]]) -> builtins.list[Manifest]:
        """`publish_all`, from tenants' files; each is called as its file."""
        return self._publish(of_file(Path(p)) for p in paths)

    def _publish(self, given: Iterable[Given]) -> builtins.list[Manifest]:
        incoming, contents = take(given)
        incoming = [i._replace(parents=tuple(self._entry(p).label for p in self._all_parents(i))) for i in incoming]
        names = {i.name for i in incoming}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        if self._late and not self._there():
            _ = [i.manifest(1, now).text for i in incoming]  # what is wrong with them leaves no empty store
            place.can_be_made(self.folder)
            place.make(self.folder)
        with self._locked():
            entries = self._entries()
            last = {e.name: e for e in sorted(entries, key=lambda e: e.version) if e.name in names}
            get = blueprint.open_all(self.folder)
            there = {n: self._sound(e, get) for n, e in last.items()}
            made = [
                again(i, there.get(i.name)) or i.manifest(last[i.name].version + 1 if i.name in last else 1, now)
                for i in incoming
            ]
            # before anything is written: metrics may be no JSON
            files = {m.file: m.text for m in made if m is not there.get(m.name)}
            commons = {c for m in made if (c := m.tenant.get("common")) is not None}
            agree(str(self.folder), made, self._of_commons(commons, names))
            if (self.folder / "store.json").read_bytes() == place.BEFORE:
                atomic.write(self.folder / "store.json", place.STORE)
            for hash in {h: None for m in made for h in m.files}:
                pool.write(self.folder, hash, contents[hash])
            for b in {m.blueprint.hash: m.blueprint for m in made if m.blueprint}.values():
                b.write(self.folder)
            if len(files) == 1:
                ((file, text),) = files.items()
                atomic.write(self._tenants / file, text)
            elif files:
                atomic.write_folder(self._tenants / digest("".join(files).encode()), files)
            index.append(self.folder, files, [e.key for e in entries])
            labels = {m.label for m in made if m.file in files}
            self._unlink([e for e in self._files() if e.label in labels and e.key not in files])  # other metrics
        return made

    def _all_parents(self, i: Incoming) -> builtins.list[str]:
        """Those that were named, and the newest version of what it stands on beside them."""
        named = {p.partition("@")[0] for p in i.parents}
        return [*i.parents, *(n for n, _ in i.header.get("over", ()) if n not in named)]

    def _unlink(self, entries: Sequence[Entry]) -> None:
        for at in [self._tenants / e.file for e in entries]:
            shutil.rmtree(at) if at.is_dir() and not at.is_symlink() else at.unlink()  # damage may be a folder
            if at.parent != self._tenants and not any(at.parent.iterdir()):
                at.parent.rmdir()
        if entries:
            atomic.sync(self._tenants)

    def _sound(self, entry: Entry, get: blueprint.Get) -> Manifest | None:
        """None of a damaged one: publishing it again mends it."""
        try:
            return self._manifest(entry, get)
        except CommonweightError:
            return None

    def _of_commons(self, commons: Collection[str], but: Collection[str] = ()) -> builtins.list[Manifest]:
        """Of all tenants of these commons those that are not alike: one for each blueprint. What is damaged is left
        out, so that publishing it again can mend it. but: names that do not count."""
        newest: dict[str, tuple[Entry, bytes]] = {}
        for e, text in self._texts(sound=True) if commons else ():
            if e.name not in but and (e.name not in newest or e.version > newest[e.name][0].version):
                newest[e.name] = e, text
        get, seen, out = blueprint.open_all(self.folder), set(), []
        for e, text in newest.values():
            try:
                made = json.loads(text).get("blueprint", e.label)
                if made not in seen:
                    m = Manifest.read(e.file, e, text, get)
                    seen.add(made)
                    out += [m] if m.tenant.get("common") in commons else []
            except (CommonweightError, ValueError, AttributeError):
                continue
        return out

    def readers(self, common: str) -> builtins.list[str]:
        """The tenants whose newest version is of this common, by name.

        Raises: CommonweightError naming two of them if their commons differ, as is possible in an old store.
        """
        found = [r.name for r in self.list() if r.common == common]
        agree(str(self.folder), self._of_commons({common}), todo="remove one of the two from the store")
        return found

    def remove(self, name: str) -> None:
        """Removes a tenant, or one version of it (``"legal@2"``), also if it is damaged. Its pools stay until `gc`.
        Warns where a stream goes on from it. Raises: CommonweightError where another tenant stands on it."""
        with self._locked():
            files = self._files()
            lost = [e for e in map(Entry.of, index.lost(self.folder, files)) if e and name in (e.name, e.label)]
            if not lost:
                self._entry(name)
            gone = [e for e in files if name in (e.name, e.label)]
            get = blueprint.open_all(self.folder)
            texts = [t for t in self._texts(sound=True) if t[0] not in gone]
            free(str(self.folder), gone, standing(texts, lambda e, t: Manifest.read(e.file, e, t, get)))
            wanted = streams.wanted(self.folder)
            missed = {s: e.label for e in gone for s in wanted.get(e.label, ())}
            index.drop(self.folder, {e.key for e in (*gone, *lost)})
            self._unlink(sorted(gone, key=lambda e: e.version))  # the newest last: until then nothing has changed
        for stream, label in missed.items():
            warnings.warn(f"the stream {stream} went on from {label}: it can no longer be resumed", stacklevel=2)

    def gc(self, keep: int | None = None) -> Freed:
        """Deletes pools that no tenant reads, and what killed writers left. keep: only so many versions per tenant, and
        those that other tenants stand on or a stream goes on from.

        Refuses if a manifest is damaged or lost, since its pools are then unknown. It never deletes what a running
        publish or reader needs: a publish holds the lock, and a reader has its files open or looks again.
        """
        if keep is not None and keep < 1:
            raise CommonweightError(f"keep={keep}: wanted 1 or more versions; `remove` takes tenants away")
        with self._locked():
            files, entries = self._files(), self._entries()
            if lost := min(index.lost(self.folder, files), default=None):
                raise CommonweightError(f"{self.folder}: nothing was deleted: tenants/{lost} {LOST}")
            get = blueprint.open_all(self.folder)
            manifests = {e: self._manifest(e, get) for e in entries}
            old = [e for e in entries if keep is not None and e.version not in _newest(entries, e.name, keep)]
            needed_by = {label for e, m in manifests.items() if e not in old for label in m.below}
            needed_by |= streams.wanted(self.folder).keys() if old else set()
            old = [e for e in old if e.label not in needed_by]
            torn, nbytes = 0, sum(len(manifests.pop(e).text) for e in old)
            index.rewrite(self.folder, {e.key: m.text for e, m in manifests.items()})
            self._unlink([e for e in files if e not in manifests])
            needed = {h for m in manifests.values() for h in m.files}
            needed |= {m.blueprint.hash for m in manifests.values() if m.blueprint}
            pools = 0
            for at in garbage(self.folder, needed):
                size = sum(map(_size, [at, *at.glob("*")] if at.is_dir() else [at]))
                try:
                    shutil.rmtree(at) if at.is_dir() else at.unlink()
                except PermissionError:  # Windows, while a reader has it open: next time
                    continue
                left = at.name.startswith(".")
                nbytes, torn, pools = nbytes + size, torn + left, pools + (not left and at.suffix == ".safetensors")
        return Freed(pools, len(old), torn, nbytes)

    @contextmanager
    def _locked(self, patience: float = PATIENCE) -> Iterator[None]:
        from filelock import FileLock, Timeout

        lock = FileLock(self.folder / "lock")
        try:
            lock.acquire(timeout=patience, poll_interval=0.01)
        except Timeout:
            raise CommonweightError(
                f"{self.folder}: another process has been writing for {patience:g} s; try again"
            ) from None
        except OSError as e:
            raise CommonweightError(f"{self.folder}: cannot be written: {e.strerror}") from e
        try:
            yield
        finally:
            lock.release()

    # -- reading ---------------------------------------------------------------------------------------------------

    def list(self) -> builtins.list[Record]:
        """Every tenant, by name. Cost: reads one file, the index, and the manifests that it lacks."""
        return self._again(lambda: records(self._texts(), blueprint.open_all(self.folder)))

    def show(self, name: str) -> Record:
        """One tenant's record; ``"legal@2"``: that version's, the marginal bytes still those of the whole tenant."""
        return self._again(lambda: self._show(self._entry(name)))

    def _show(self, entry: Entry) -> Record:
        for record in records(self._texts(), blueprint.open_all(self.folder), entry.name):
            if record.version == entry.version:
                return record
        raise Gone(f"{self.folder}: {entry.label} was replaced or removed just now")

    def manifest(self, name: str) -> Manifest:
        """The manifest of a tenant's newest version, or of ``"legal@2"``."""
        return self._again(lambda: self._manifest(self._entry(name)))

    def diff(self, a: str, b: str) -> Diff:
        """What two tenants, or two versions (``"legal@1"``, ``"legal@2"``), have in common."""
        return self._again(lambda: self._diff(self._entry(a), self._entry(b)))

    def _diff(self, a: Entry, b: Entry) -> Diff:
        one, two = self._manifest(a), self._manifest(b)
        x, y = Fetched(self.folder, one), Fetched(self.folder, two)
        return diff(one, two, lambda k: x.content(k).data == y.content(k).data)

    def fetch(self, name: str) -> Fetched:
        """A tenant with all its pools open; nothing is read yet. Raises: CommonweightError naming a missing pool."""
        return self._again(lambda: Fetched(self.folder, self._manifest(self._entry(name))))

    def export(self, name: str, path: str | os.PathLike[str], *, overwrite: bool = True) -> Path:
        """Writes a tenant as the one file that `Host.load` reads: the bytes that `Host.save` would have written.
        overwrite: False refuses to replace another file, with a CommonweightError."""
        from ..formats import native

        got = self.fetch(name)
        data = {k: got.read(k) for k in got.hashes}
        return atomic.write_new(Path(path), native.sealed(got.header, data), overwrite=overwrite)

    def verify(self) -> builtins.list[Problem]:
        """Checks every bit; returns an empty list if nothing is damaged. Cost: reads every file once."""
        unread: builtins.list[tuple[Path, str]] = []
        files = self._files(unread)
        found = [Problem(at.relative_to(self.folder).as_posix(), f"cannot be read ({why})", ()) for at, why in unread]
        return [*found, *problems(self.folder, (place.STORE, place.BEFORE), files, self._lost())]

    def _lost(self) -> builtins.list[str]:
        """The keys of manifests that the index has and the folder has not; looked at again while nobody writes."""
        found = index.lost(self.folder, self._files([]))
        if not found:
            return []
        try:
            with self._locked():
                return sorted(index.lost(self.folder, self._files([])))
        except CommonweightError:  # a store that only can be read has no writers
            return sorted(found)

    @property
    def nbytes(self) -> int:
        """Bytes of all pools, blueprints and manifests, also of those that `gc` would take. The index is a copy and not
        counted."""
        files = [*self.folder.glob("pools/??/*.safetensors"), *self.folder.glob(f"{blueprint.FOLDER}/*.json")]
        return sum(map(_size, files)) + sum(_size(self._tenants / e.file) for e in self._entries())

    def newest(self) -> dict[str, int]:
        """Every tenant's newest version. Cost: a listing of one folder."""
        found: dict[str, int] = {}
        for e in self._files():
            found[e.name] = max(e.version, found.get(e.name, 0))
        return dict(sorted(found.items()))

    def newest_files(self) -> dict[str, str]:
        """The file of every tenant's newest version: another one where anything of it has changed."""
        return {e.name: e.file for e in sorted(self._entries(), key=lambda e: (e.name, e.version))}

    def __contains__(self, name: object) -> bool:
        return name in self.newest()

    def __iter__(self) -> Iterator[str]:
        return iter(self.newest())

    def __len__(self) -> int:
        return len(self.newest())

    def _entries(self) -> builtins.list[Entry]:
        return once(self._files())

    def _files(self, unread: builtins.list[tuple[Path, str]] | None = None) -> builtins.list[Entry]:
        """Every manifest's file. unread: is given the folders that cannot be read, and why, in place of an error."""
        found: builtins.list[str] = []
        try:
            found = os.listdir(self._tenants)
        except OSError as e:
            if isinstance(e, FileNotFoundError) and self._late and not self._there():
                return []
            if unread is None:
                why = "is missing" if isinstance(e, FileNotFoundError) else f"cannot be read ({e.strerror})"
                raise CommonweightError(f"{self._tenants}: this folder of the store {why}") from e
            unread.append((self._tenants, str(e.strerror)))
        for joint in filter(JOINT.fullmatch, [*found]):
            try:
                found += [f"{joint}/{f}" for f in os.listdir(self._tenants / joint)]
            except (FileNotFoundError, NotADirectoryError):  # a gc took it, for it was empty; or it is none of ours
                continue
            except OSError as e:
                if unread is None:
                    raise CommonweightError(f"{self._tenants / joint}: cannot be read ({e.strerror})") from e
                unread.append((self._tenants / joint, str(e.strerror)))
        return [e for e in map(Entry.of, found) if e]

    def _entry(self, name: str) -> Entry:
        """The newest version of a tenant, or the one that ``name@version`` names."""
        plain, at, number = str(name).partition("@")
        safe(plain)
        entries = self._entries()
        mine = [e for e in entries if e.name == plain]
        if not mine:
            raise Unknown(f"{self.folder}: {unknown('tenant', plain, {e.name for e in entries})}")
        if wanted := [e for e in mine if not at or str(e.version) == number]:
            return max(wanted, key=lambda e: e.version)
        there = ", ".join(str(e.version) for e in sorted(mine, key=lambda e: e.version))
        raise CommonweightError(f"{self.folder}: {plain} has no version {number!r}; there are {there}")

    def _manifest(self, entry: Entry, get: blueprint.Get | None = None) -> Manifest:
        at = self._tenants / entry.file
        try:
            return Manifest.read(str(at), entry, at.read_bytes(), get or blueprint.open_all(self.folder))
        except FileNotFoundError as e:
            raise Gone(f"{at}: this manifest is missing") from e
        except OSError as e:
            raise CommonweightError(f"{at}: cannot be read ({e.strerror})") from e

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

    def _texts(self, sound: bool = False) -> builtins.list[tuple[Entry, bytes]]:
        """All manifests, through the index; mends an index that lacks many of them, where that can be done now.
        sound: without those that cannot be read."""
        wanted = {e.key: e for e in self._entries()}
        found, useless = index.read(self.folder, wanted)
        lacking, get = [e for key, e in wanted.items() if key not in found], blueprint.open_all(self.folder)
        for e in lacking:
            try:
                found[e.key] = self._manifest(e, get).text
            except CommonweightError:
                if not sound:
                    raise
        if len(lacking) > 100 or useless > 100 + len(wanted):
            try:
                with self._locked(0):
                    index.rewrite(self.folder, {**index.lost(self.folder, [*wanted.values()]), **found})
            except CommonweightError:
                pass
        return [(wanted[key], text) for key, text in found.items()]


def _size(file: Path) -> int:
    """Bytes; none of a file that another process has just taken away."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


def _newest(entries: Iterable[Entry], name: str, keep: int) -> set[int]:
    return set(sorted(e.version for e in entries if e.name == name)[-keep:])
