"""The state machine: everything that happens to a server, in any order, and what each request may be answered."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from commonweight import CommonweightError, Request
from commonweight.serve.engine import Stream

from .calls import Said
from .ledger import BROKEN, GONE, Ledger, May
from .shop import BAD, MOST, PROMPTS
from .world import World, Wrong

HOW = ("whole", "stream", "text", "chat", "drawn", "several", "hang up", "hang up late", "engine", "cancel", "late")
DAMAGE = ("cut", "turned", "nothing", "no JSON", "gone", "a folder")


@dataclass
class Flying:
    """A request that was not answered yet. at: how long the history was when it came; exact: what it may be, where
    its tenant is taken at once."""

    how: str
    name: str | None
    prompt: list[int]
    most: int
    at: int
    came: Any
    exact: May | None = None
    seed: int = 0


asked = st.tuples(
    st.integers(-1, 31), st.integers(0, PROMPTS - 1), st.integers(1, MOST), st.sampled_from(HOW), st.integers(0, 2)
)
bodies = st.one_of(
    st.sampled_from([
        {"prompt": "w1", "temperature": -1}, {"prompt": []}, {"prompt": [10**9]}, {"prompt": [-1]}, {"prompt": None},
        {"prompt": "w1", "max_tokens": 0}, {"prompt": "w1", "max_tokens": 10**9}, {"prompt": "w1", "n": 0}, {},
        {"prompt": "w1", "n": 65}, {"prompt": "w1", "stop": ""}, {"prompt": "w1", "stop": [1]}, {"promt": "w1"},
        {"prompt": "w1", "logit_bias": {"x": 1}}, {"prompt": "w1", "logit_bias": {"5": 1e9}}, {"prompt": "\ud800"},
        {"prompt": "w1", "top_p": 0}, {"prompt": "w1", "seed": 1.5}, {"prompt": "w1", "logprobs": 99},
        {"prompt": "w1", "echo": 1}, {"prompt": "w1", "suffix": "x"}, {"prompt": ["w1"] * 2000},
        {"prompt": "w1 " * 300}, {"prompt": "w1", "stream_options": {"include_usage": True}}, {"prompt": [[]]},
        {"prompt": [1, "w1"]}, {"prompt": {"a": 1}}, {"prompt": "w1", "best_of": 3}, {"prompt": [[1], []]},
        [], None, 5, "x",
    ]),
    st.binary(max_size=40),
)  # fmt: skip


def machine(world: World) -> type[RuleBasedStateMachine]:
    """The class for one world."""
    shop = world.shop
    names = st.sampled_from(shop.names)
    versions = st.integers(1, shop.versions)
    paths = st.sampled_from(["/v1/completions", "/v1/chat/completions"])

    def ledger() -> Ledger:
        return world.ledger

    class Machine(RuleBasedStateMachine):
        def __init__(self) -> None:
            super().__init__()
            self.flying: list[Flying] = []
            if Wrong.seen is not None:
                raise Wrong.seen

        # -- asking --------------------------------------------------------------------------------------------------

        @rule(many=st.lists(asked, min_size=1, max_size=12))
        def ask(self, many: list[Any]) -> None:
            for who, i, most, how, seed in many:
                name = None if who < 0 or who >= 4 * len(shop.names) else shop.names[who % len(shop.names)]
                self.flying.append(_asked(world, how, name, shop.prompt(name, i), most, seed))
            while len(self.flying) > 24:
                self.end()

        @rule(many=st.lists(asked, min_size=1, max_size=12))
        def ask_and_wait(self, many: list[Any]) -> None:
            self.ask(many)
            while self.flying:
                self.end()

        @rule()
        def end(self) -> None:
            if self.flying:
                _ended(world, self.flying.pop(0))

        @rule(
            name=names,
            i=st.integers(0, PROMPTS - 1),
            body=bodies,
            path=paths,
        )
        def ask_wrongly(self, name: str, i: int, body: Any, path: str) -> None:
            world.did("wrong", name, asked=True)
            if isinstance(body, dict) and i % 3:
                body = {"model": name, **body}
            if path.endswith("chat/completions") and isinstance(body, dict) and "prompt" in body:
                body = {
                    "model": name,
                    "messages": [{"role": "user", "content": body.pop("prompt")}],
                    **body,
                    "top_k": -2,
                }
            said = world.calls.call("POST", path, body, **{"content-type": "application/json"})
            world.refused(said, 400, 404)
            world.own(name, (), said.raw.decode("utf-8", "replace"))

        @rule(name=names, i=st.integers(0, PROMPTS - 1))
        def ask_nobody(self, name: str, i: int) -> None:
            world.did("nobody", name, asked=True)
            body = {"model": f"{name}-2", "prompt": shop.prompt(name, i)}
            world.refused(world.calls.call("POST", "/v1/completions", body), 404)
            for bad in (Request([1], tenant=f"{name}-2"), Request([], tenant=name), Request([1], n=0)):
                try:
                    world.engine.submit(bad)
                except CommonweightError:
                    continue
                raise Wrong(f"taken: {bad}")

        @rule(path=st.sampled_from(["/health", "/ready", "/metrics", "/v1/models", "/openapi.json", "/v1/nothing"]))
        def look_around(self, path: str) -> None:
            world.did("look", path, asked=True)
            said = world.calls.call("GET", path)
            if said.status != (404 if path.endswith("nothing") else 200):
                raise Wrong(f"{path}: {said.status} {said.raw[:300]!r}")
            world.own(None, (), said.raw.decode())

        # -- tenants that change -------------------------------------------------------------------------------------

        @rule(name=names, version=versions)
        def put(self, name: str, version: int) -> None:
            self._put("put", name, version)

        @rule(name=names)
        def put_an_ill_one(self, name: str) -> None:
            self._put("ill", name, BAD)

        def _put(self, kind: str, name: str, version: int | str) -> None:
            said = self._told(kind, "PUT", f"/v1/tenants/{name}", shop.files[name, version].read_bytes())
            if said.status not in (200, 201):
                raise Wrong(f"{kind} {name}: {said.status} {said.raw[:300]!r}")
            ledger().put(name, version)

        @rule(name=names, version=versions, at=st.integers(0, 10**6))
        def put_half_a_file(self, name: str, version: int, at: int) -> None:
            raw = shop.files[name, version].read_bytes()
            world.refused(self._told("half", "PUT", f"/v1/tenants/{name}", raw[: at % len(raw)]), 400)

        @rule(name=names, version=versions, first=st.booleans())
        def publish_from_elsewhere(self, name: str, version: int, first: bool) -> None:
            """By another process, which may take the one before out first. The server does not know yet."""
            world.did("publish", name, version, first)
            if name in ledger().damaged:
                return
            if first and name in world.store:
                world.store.remove(name)
                ledger().elsewhere(name, None)  # what a request on its way may find
            world.store.publish_file(shop.files[name, version], name)
            ledger().elsewhere(name, version)

        @rule(name=names)
        def remove_from_elsewhere(self, name: str) -> None:
            world.did("remove", name)
            if name not in ledger().damaged and name in world.store:
                world.store.remove(name)
                ledger().elsewhere(name, None)

        @rule()
        def notice(self) -> None:
            """The server looks at its store, as it does from time to time."""
            world.did("notice")
            world.service.roster.look()
            ledger().noticed()

        @rule(name=names)
        def evict(self, name: str) -> None:
            world.did("evict", name)
            world.engine.unload(name)
            ledger().unloaded(name)

        @rule(name=names)
        def unload(self, name: str) -> None:
            there = name in world.host
            said = self._told("unload", "POST", "/v1/unload_lora_adapter", {"lora_name": name})
            if said.status not in (200, 404) or (not self.flying and (said.status == 200) != there):
                raise Wrong(f"unload {name}: {said.status} {said.raw[:300]!r}")
            ledger().unloaded(name)

        @rule(name=names, version=versions, inplace=st.booleans())
        def load(self, name: str, version: int, inplace: bool) -> None:
            body = {"lora_name": name, "lora_path": str(shop.files[name, version]), "load_inplace": inplace}
            free = inplace or ledger().may(name) == {GONE}
            said = self._told("load", "POST", "/v1/load_lora_adapter", body)
            if said.status == 200 and (free or GONE in ledger().may(name)):
                ledger().load(name, version)
            elif said.status != 400 or free:
                raise Wrong(f"load {name}: {said.status} {said.raw[:300]!r}")

        @rule(name=names)
        def delete(self, name: str) -> None:
            said = self._told("delete", "DELETE", f"/v1/tenants/{name}")
            if said.status not in (200, 404):
                raise Wrong(f"delete {name}: {said.status} {said.raw[:300]!r}")
            ledger().deleted(name)

        @rule(name=names, how=st.sampled_from(DAMAGE), at=st.integers(0, 10**6), pool=st.booleans())
        def damage(self, name: str, how: str, at: int, pool: bool) -> None:
            """A disk that loses bytes. The tenants that have these in memory may go on."""
            world.did("damage", name, how, pool)
            files = sorted((world.store.folder / "tenants").rglob(f"{name}@*.json"))
            if pool:
                files = sorted((world.store.folder / "pools").rglob("*.safetensors"))
            if not files or not (path := files[at % len(files)]).is_file():
                return
            hit = [n for n in shop.names if not pool or _reads(world, n, path.stem)] if pool else [name]
            if pool and how == "a folder":  # no put could mend that
                how = "gone"
            _damage(path, how, at)
            ledger().damage(hit)

        @rule(name=names, version=versions)
        def repair(self, name: str, version: int) -> None:
            """Deleted, and put anew."""
            self.delete(name)
            self.put(name, version)

        @rule(by=st.integers(-(10**8), 10**8), files=st.booleans())
        def turn_the_clock(self, by: int, files: bool) -> None:
            world.did("clock", by, files)
            world.skew = float(by)
            if files:
                for path in world.store.folder.rglob("*"):
                    os.utime(path, (10**9 + by, 10**9 + by))

        # -- the end -------------------------------------------------------------------------------------------------

        def teardown(self) -> None:
            while self.flying:
                self.end()
            world.quiet()
            world.reset()

        def _told(self, kind: str, method: str, path: str, body: Any = None) -> Said:
            world.did(kind, path, asked=True)
            said = world.calls.call(method, path, body)
            world.own(None, (), said.raw.decode("utf-8", "replace"))
            return said

    return Machine


def _reads(world: World, name: str, pool: str) -> bool:
    """Whether a file of the tenant's, or one that several have in common, names the pool."""
    folder = world.store.folder
    texts = [*(folder / "tenants").rglob(f"{name}@*.json"), *(folder / "blueprints").rglob("*.json")]
    return any(pool in t.read_text("utf-8", "replace") for t in texts if t.is_file())


def _damage(path: Path, how: str, at: int) -> None:
    raw = path.read_bytes()
    path.chmod(0o644)
    at %= max(1, len(raw))
    if how == "cut":
        path.write_bytes(raw[:at])
    elif how == "turned":
        path.write_bytes(raw[:at] + bytes(b ^ 64 for b in raw[at : at + 1]) + raw[at + 1 :])
    elif how == "no JSON":
        path.write_bytes(b"{" * len(raw))
    elif how == "nothing":
        path.write_bytes(b"")
    else:
        path.unlink()
        if how == "a folder":
            path.mkdir()


def _asked(world: World, how: str, name: str | None, prompt: list[int], most: int, seed: int) -> Flying:
    at = len(world.ledger.history)
    world.did(how, name, most, seed, prompt[1:], asked=True)
    one: Callable[..., Flying] = lambda came, exact=None: Flying(how, name, prompt, most, at, came, exact, seed)  # noqa: E731
    if how in ("engine", "cancel", "late"):
        timeout = 0.001 * (1 + seed) if how == "late" else None
        request = Request(prompt, name, max_new_tokens=most, temperature=0, ignore_eos=True, timeout=timeout)
        may = frozenset() if name is None else world.ledger.may(name)
        try:
            stream = world.engine.submit(request)
        except CommonweightError as e:
            return one(e, may)
        if how == "cancel":
            stream.cancel()
        return one(stream, may)
    body: dict[str, Any] = {"model": name or "base", "max_tokens": most, "temperature": 0, "ignore_eos": True}
    path = "/v1/completions"
    if how == "chat":
        path, text = "/v1/chat/completions", " ".join(world.shop.words[t] for t in prompt[1:])
        body |= {"messages": [{"role": "user", "content": text}], "stream": seed == 1}
    else:
        body["prompt"] = " ".join(world.shop.words[t] for t in prompt) if how == "text" else prompt
    if how == "drawn":
        body |= {"temperature": 1.0, "top_p": 0.9, "seed": seed, "logprobs": 0}
        body["logit_bias"] = {str(t): -100 for t in world.shop.canaries}
    if how == "several":
        body |= {"n": 2, "prompt": [prompt, prompt]}
    if how in ("stream", "hang up late"):
        body["stream"] = True
    hang = {"hang up": 0, "hang up late": 2 + seed}.get(how)
    return one(world.calls.start("POST", path, body, hang))


def _ended(world: World, one: Flying) -> None:
    may = one.exact if one.exact is not None else world.ledger.since(one.name, one.at)
    if isinstance(one.came, CommonweightError):
        if not may & {GONE, BROKEN, BAD}:
            raise Wrong(f"{one.name} ({sorted(map(str, may))}) was refused: {one.came}")
        world.own(one.name, may, str(one.came))
        world.counts.ends["refused"] += 1
    elif isinstance(one.came, Stream):
        _by_engine(world, one, may)
    else:
        assert isinstance(one.came, Future)
        _by_http(world, one, may, one.came.result(120))


def _versions(one: Flying, may: May) -> tuple[Any, ...]:
    return (None,) if one.name is None else tuple(may)


def _by_engine(world: World, one: Flying, may: May) -> None:
    answer = one.came.answer()
    world.counts.ends[answer.finish_reason] += 1
    world.own(one.name, _versions(one, may), world.shop.text(answer.tokens) + (answer.error or ""), one.prompt)
    if answer.finish_reason == "error":
        if BAD not in may:
            raise Wrong(f"{one.name} ({sorted(map(str, may))}): {answer.error}")
        return
    cut = {"cancel": "cancelled", "late": "timeout"}.get(one.how)
    if answer.finish_reason not in ("length", cut) or (answer.finish_reason == "length") != (
        len(answer.tokens) == one.most
    ):
        raise Wrong(f"{one}: {answer.finish_reason}, {len(answer.tokens)} tokens")
    world.right(one.name, _versions(one, may), one.prompt, answer.tokens)


def _by_http(world: World, one: Flying, may: May, said: Said) -> None:
    text = said.raw.decode("utf-8", "replace")
    prompt = world.shop.chat(one.prompt) if one.how == "chat" else one.prompt
    world.own(one.name, _versions(one, may), text, prompt)
    if said.gone or said.status == 499:
        world.counts.ends["gone"] += 1
        return
    if said.status != 200:
        if not may & {GONE, BROKEN, BAD}:
            raise Wrong(f"{one.name} ({sorted(map(str, may))}): {said.status} {text[:300]}")
        world.refused(
            said, *({404} if GONE in may else ()), *({400} if BROKEN in may else ()), *({500} if BAD in may else ())
        )
        return
    world.counts.ends["200"] += 1
    if one.how in ("stream", "hang up late") or (one.how == "chat" and one.seed == 1):
        events = said.events
        if events[-1] != "[DONE]":
            raise Wrong(f"a stream ends with {events[-1]}")
        if any("error" in e for e in events[:-1]):
            if BAD not in may:
                raise Wrong(f"{one.name} ({sorted(map(str, may))}): {events[-2]}")
            return
        found = [c for e in events[:-1] for c in e["choices"]]
        words = ["".join(c["text"] if "text" in c else c["delta"].get("content", "") for c in found)]
    else:
        choices = said.json["choices"]
        words = [c["text"] if "text" in c else c["message"]["content"] for c in choices]
    if one.how == "drawn":
        logs = said.json["choices"][0]["logprobs"]
        if len(logs["tokens"]) > one.most or any(x > 0 for x in logs["token_logprobs"]):
            raise Wrong(f"{one}: {logs}")
        if one.name is None or len(may) == 1:
            key = one.name, _versions(one, may), tuple(one.prompt), one.most, one.seed
            if world.drawn.setdefault(key, words[0]) != words[0]:
                raise Wrong(f"{one}: the same seed drew {words[0]!r}, and before {world.drawn[key]!r}")
        return
    for said_words in words:
        world.reads(one.name, _versions(one, may), prompt, one.most, said_words)
