"""Tenants that come and go: vLLM's load and unload, put and delete, a store that changes, files that are none."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from commonweight.commons import Commons
from commonweight.host import Host
from commonweight.serve.http.service import WORKERS

from ..served import add, alone, ask, make, prompt
from . import shop


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Of tenants c and d a file and a folder of PEFT each; a host that has them."""
    folder = tmp_path_factory.mktemp("files")
    host = Host(make())
    for name, method in (("c", "lora"), ("d", "lora")):
        add(host, name, method)
        host.save(name, folder / f"{name}.safetensors")
        host.export_peft(name, folder / name)
    return folder, host


@pytest.fixture
def server(tmp_path, files):
    """A server whose store has c as tenant s."""
    store = Commons(tmp_path / "store")
    store.publish_file(files[0] / "c.safetensors", "s")
    host = shop.host()
    with shop.client(host, store=tmp_path / "store", watch=0.05) as client:
        yield client, host, store


def answer(client, model):
    body = {"model": model, "prompt": prompt(1), "max_tokens": 6, "temperature": 0, "ignore_eos": True}
    return client.post("/v1/completions", json=body)


def said(client, model):
    got = answer(client, model)
    assert got.status_code == 200, got.text
    return got.json()["choices"][0]["text"]


def words(host, tenant):
    return shop.tokenizer().decode(alone(host, ask(tenant, 1)), skip_special_tokens=True)


def load(client, name, path, **more):
    return client.post("/v1/load_lora_adapter", json={"lora_name": name, "lora_path": str(path), **more})


@pytest.mark.parametrize("kind", ["c", "c.safetensors"])
def test_load_and_unload_as_vllm_has_them(server, files, kind):
    client, host, _ = server
    got = load(client, "x", files[0] / kind)
    assert got.status_code == 200 and got.text == "Success: LoRA adapter 'x' added successfully."
    assert said(client, "x") == words(files[1], "c")
    again = load(client, "x", files[0] / kind)
    assert again.status_code == 400 and again.json()["error"]["type"] == "InvalidUserInput"
    assert "has already been loaded. If you want to load the adapter in place" in again.json()["error"]["message"]
    assert load(client, "x", files[0] / "d", load_inplace=True).status_code == 200
    assert said(client, "x") == words(files[1], "d")
    got = client.post("/v1/unload_lora_adapter", json={"lora_name": "x"})
    assert got.status_code == 200 and got.text == "Success: LoRA adapter 'x' removed successfully."
    assert answer(client, "x").status_code == 404 and "x" not in host
    got = client.post("/v1/unload_lora_adapter", json={"lora_name": "x"})
    assert got.status_code == 404 and got.json()["error"]["message"] == "The lora adapter 'x' cannot be found."


def test_what_cannot_be_loaded(server, files, tmp_path):
    client, host, _ = server
    (tmp_path / "bad.safetensors").write_bytes(b"nothing")
    for name, path, status, told in (
        ("", "y", 400, "Both 'lora_name' and 'lora_path' must be provided."),
        ("y", tmp_path / "none", 404, "No adapter found"),
        ("y", tmp_path / "bad.safetensors", 400, "bad.safetensors"),
        ("y", "/" + "y" * 5000, 404, "No adapter found"),
        ("base", files[0] / "c", 400, "The lora adapter 'base' conflicts with a served base model."),
        ("../y", files[0] / "c", 400, "cannot be a tenant's name"),
        ("s", files[0] / "c", 400, "has already been loaded"),
        ("a", tmp_path / "bad.safetensors", 400, "has already been loaded"),
    ):
        got = load(client, name, path)
        assert got.status_code == status and told in got.json()["error"]["message"], got.text
    before = said(client, "a")
    assert load(client, "a", tmp_path / "bad.safetensors", load_inplace=True).status_code == 400
    assert said(client, "a") == before and sorted(host) == ["a", "b"]


def test_unloading_frees_what_the_batch_holds(server, files):
    client, host, _ = server
    engine = client.app.state.service.engine
    load(client, "x", files[0] / "c")
    said(client, "x")
    assert any(e.name == "x" for e in engine._router.lanes.known())
    client.post("/v1/unload_lora_adapter", json={"lora_name": "x"})
    for _ in range(100):
        if not any(e.name == "x" for e in engine._router.lanes.known()):
            break
        time.sleep(0.02)
    assert not any(e.name == "x" for e in engine._router.lanes.known())
    assert said(client, "a") == words(host, "a")


def test_a_store_that_loses_files_and_a_disk_that_is_full(server, files, monkeypatch):
    client, host, store = server
    raw = (files[0] / "c.safetensors").read_bytes()
    (manifest,) = (store.folder / "tenants").glob("s@*.json")
    manifest.unlink()
    manifest.mkdir()  # what is damaged can be deleted, whatever it is
    assert answer(client, "s").status_code == 400
    assert client.delete("/v1/tenants/s").status_code == 200 and "s" not in store

    def full(*args, **more):
        raise OSError(28, "No space left on device", "/secret/path")

    monkeypatch.setattr(Commons, "publish_file", full)
    monkeypatch.setattr(Commons, "remove", full)
    store.publish_files([files[0] / "d.safetensors"])
    for got in (client.put("/v1/tenants/x", content=raw), client.delete("/v1/tenants/d")):
        assert got.status_code == 503 and "No space left" in got.json()["error"]["message"]
        assert "secret" not in got.text
    assert said(client, "a") == words(host, "a")


def test_a_tenant_that_was_removed_and_published_anew_elsewhere(server, files):
    client, _, store = server
    before = said(client, "s")
    store.remove("s")
    assert store.publish_file(files[0] / "d.safetensors", "s").version == 1  # the same number, another tenant
    for _ in range(200):
        if said(client, "s") != before:
            break
        time.sleep(0.02)
    assert said(client, "s") == words(files[1], "d")


def test_a_tenant_that_leaves_while_it_is_asked_for(server, monkeypatch):
    client, _, _ = server
    service = client.app.state.service
    monkeypatch.setattr(service, "_there", lambda name: True)  # as it was when it was looked for
    got = answer(client, "sa")
    assert got.status_code == 404 and got.json()["error"]["message"] == "The model `sa` does not exist."


def test_a_tenant_that_leaves_the_store_while_it_is_loaded(tmp_path, files, monkeypatch):
    store = Commons(tmp_path / "store")
    store.publish_file(files[0] / "c.safetensors", "s")
    read, go = threading.Event(), threading.Event()
    load = Host.load_from

    def slow(self, *args, **more):
        tenant = load(self, *args, **more)
        read.set()
        assert go.wait(20)
        return tenant

    monkeypatch.setattr(Host, "load_from", slow)
    with shop.client(shop.host(), store=tmp_path / "store", watch=3600) as client:
        roster = client.app.state.service.roster
        roster.look()
        asking = threading.Thread(target=answer, args=(client, "s"))
        asking.start()
        assert read.wait(20)
        store.remove("s")
        roster.look()
        go.set()
        asking.join()
        assert answer(client, "s").status_code == 404


def test_put_and_delete(server, files):
    client, host, store = server
    raw = {n: (files[0] / f"{n}.safetensors").read_bytes() for n in "cd"}
    got = client.put("/v1/tenants/x", content=raw["c"])
    assert got.status_code == 201 and got.json()["version"] == 1 and said(client, "x") == words(files[1], "c")
    got = client.put("/v1/tenants/x", content=raw["d"])
    assert got.status_code == 200 and got.json()["version"] == 2 and said(client, "x") == words(files[1], "d")
    assert "x" in store and "x" in [m["id"] for m in client.get("/v1/models").json()["data"]]
    assert client.delete("/v1/tenants/x").json()["deleted"] is True
    assert answer(client, "x").status_code == 404 and "x" not in store
    assert client.delete("/v1/tenants/x").status_code == 404
    for content, told in ((b"", "empty"), (b"nothing", "the file"), (raw["c"][:200], "the file")):
        got = client.put("/v1/tenants/y", content=content)
        assert got.status_code == 400 and told in got.json()["error"]["message"], got.text
    assert client.put("/v1/tenants/base", content=raw["c"]).status_code == 400
    assert "y" not in store and sorted(host) == ["a", "b"]


def test_who_asks_while_a_tenant_is_deleted_does_not_bring_it_back(server, monkeypatch):
    client, _, store = server
    served, remove = client.app.state.service.engine.tenants.store, store.remove

    def slow(name):
        said(client, "s")  # loads it, between the server's looking and the removal
        remove(name)

    monkeypatch.setattr(served, "remove", slow)
    monkeypatch.setattr(client.app.state.service.roster, "look", list)  # which would see it, later
    assert client.delete("/v1/tenants/s").status_code == 200
    assert answer(client, "s").status_code == 404 and "s" not in client.app.state.service.engine.host


def test_half_loaded_tenants_have_no_name(server, files, monkeypatch):
    client, host, _ = server
    seen = []

    def look(path, name):
        found = Host.load_adapter(host, path, name)
        seen.append((answer(client, name).status_code, [m["id"] for m in client.get("/v1/models").json()["data"]]))
        return found

    monkeypatch.setattr(host, "load_adapter", look)
    assert load(client, "e", files[0] / "c").status_code == 200 and said(client, "e")
    assert seen == [(404, ["base", "org/tiny", "a", "b", "s"])]
    assert client.put("/v1/tenants/_coming", content=b"x").status_code == 400


def test_without_a_store(files):
    with shop.client(shop.host()) as client:
        raw = (files[0] / "c.safetensors").read_bytes()
        assert client.put("/v1/tenants/x", content=raw).status_code == 201
        assert said(client, "x") == words(files[1], "c")
        assert client.delete("/v1/tenants/x").status_code == 200 and answer(client, "x").status_code == 404


def test_a_version_that_another_process_publishes_is_served(server, files):
    client, _, store = server
    assert said(client, "s") == words(files[1], "c")
    time.sleep(0.1)
    store.publish_file(files[0] / "d.safetensors", "s")
    for _ in range(100):
        if said(client, "s") == words(files[1], "d"):
            break
        time.sleep(0.02)
    assert said(client, "s") == words(files[1], "d")


def test_a_damaged_tenant_is_its_own_requests_trouble(server, files):
    client, host, store = server
    for pool in store.folder.glob("pools/??/*.safetensors"):
        pool.write_bytes(pool.read_bytes()[:-8])
    got = answer(client, "s")
    error = got.json()["error"]
    assert got.status_code == 400 and error["param"] == "model" and "tenant 's' cannot be loaded" in error["message"]
    assert str(store.folder) not in error["message"]
    assert said(client, "a") == words(host, "a")


def test_numbers_that_are_not_finite(server):
    client, host, _ = server
    add(host, "ill", "lora")
    with torch.no_grad():
        list(host["ill"].parameters())[-1].fill_(float("nan"))
    got = answer(client, "ill")
    assert got.status_code == 500 and "no finite numbers" in got.json()["error"]["message"]
    assert got.headers["x-should-retry"] == "false"
    body = {"model": "ill", "prompt": prompt(1), "stream": True}
    *_, error, done = shop.events(client.post("/v1/completions", json=body).text)
    assert done == "[DONE]" and error["error"]["code"] == 500
    assert said(client, "a") == words(host, "a")


def test_who_may_change_tenants(files, tmp_path):
    secret = "the key of an admin"
    body = {"lora_name": "x", "lora_path": str(files[0] / "c")}
    with shop.client(shop.host(), admin=secret) as client:
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 403
        assert (
            client.delete("/v1/tenants/a").status_code == client.put("/v1/tenants/a", content=b"x").status_code == 403
        )
        headers = {"authorization": f"Bearer {secret}"}
        assert client.post("/v1/load_lora_adapter", json=body, headers=headers).status_code == 200
    with shop.client(shop.host(), loopback=False) as client:
        assert client.post("/v1/load_lora_adapter", json=body).status_code == 403
    with shop.client(shop.host()) as client:
        got = client.post("/v1/load_lora_adapter", json=body, headers={"host": "evil.example"})
        assert got.status_code == 403 and "localhost" in got.json()["error"]["message"]


def test_loads_that_take_long_hold_back_their_own_requests_alone(server, files, monkeypatch):
    """As many as the server has threads, and more."""
    client, host, store = server
    for i in range(WORKERS + 1):
        store.publish_file(files[0] / "c.safetensors", f"slow{i}")
    began, go, fetch = threading.Semaphore(0), threading.Event(), Commons.fetch

    def slow(self, name):
        if name.startswith("slow"):
            began.release()
            assert go.wait(60)
        return fetch(self, name)

    monkeypatch.setattr(Commons, "fetch", slow)
    with ThreadPoolExecutor(2 * WORKERS) as pool:
        cold = [pool.submit(said, client, f"slow{i % (WORKERS + 1)}") for i in range(2 * WORKERS)]
        assert all(began.acquire(timeout=60) for _ in range(WORKERS))
        assert said(client, "a") == words(host, "a") and said(client, "base") == words(host, None)
        assert not any(f.done() for f in cold)
        go.set()
        assert {f.result(60) for f in cold} == {words(files[1], "c")}


def test_a_sum_of_tenants(server):
    client, host, _ = server
    with torch.no_grad():
        one = said(client, "0.5*a+0.5*a")
    assert one == said(client, "a") == words(host, "a")
    assert client.get("/v1/models/a+0.5*b").json()["id"] == "a+0.5*b"
    got = answer(client, "a+0.5*nobody")
    assert got.status_code == 404 and "`nobody` does not exist" in got.json()["error"]["message"]
    add(host, "plug", "bottleneck")
    for model, told in (("a+plug", "(bottleneck) cannot be added"), ("a+x*b", "no weight"), ("a+base", "no change")):
        got = answer(client, model)
        assert got.status_code == 400 and told in got.json()["error"]["message"], got.text
        assert got.json()["error"]["param"] == "model"
