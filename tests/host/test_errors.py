"""What bad input gets: an error that says where, what came, what was wanted; and a host that is as it was."""

from __future__ import annotations

import json
import os
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

import commonweight as cw
from tests.laws.subjects import stir
from tests.models import answer, make


def snapshot(host: cw.Host) -> dict:
    hooks = {n: (len(m._forward_hooks), len(m._forward_pre_hooks)) for n, m in host.model.named_modules()}
    bits = {n: p.detach().numpy().tobytes() for n, p in host.model.named_parameters()}
    pools = {t: {n: p.detach().numpy().tobytes() for n, p in host[t].pools.items()} for t in host}
    return {
        "hooks": hooks,
        "bits": bits,
        "pools": pools,
        "frozen": list(map(id, host.roster.frozen.values())),
        "next": host.roster.next,
    }


@pytest.fixture
def host():
    model, _ = make("llama")
    h = cw.Host(model)
    stir(h.add("taken", "lora", rank=2))
    return h


@pytest.mark.parametrize(
    ("name", "method", "options", "message"),
    [
        ("taken", "lora", {}, "the tenant name 'taken' is taken; choose another"),
        ("../x", "lora", {}, "cannot be a tenant's name"),
        ("", "lora", {}, "cannot be a tenant's name"),
        ("a/b", "lora", {}, "cannot be a tenant's name"),
        (".hidden", "lora", {}, "cannot be a tenant's name"),
        ("x\n", "lora", {}, "cannot be a tenant's name"),
        (None, "lora", {}, "cannot be a tenant's name"),
        ("t", "lorra", {}, "unknown method 'lorra'; did you mean 'lora'?"),
        ("t", "lora", {"rnak": 8}, "unknown option of LoRA 'rnak'; did you mean 'rank'?"),
        ("t", "lora", {"rank": 0}, "LoRA: rank is 0; it must be >= 1"),
        ("t", "lora", {"rank": "8"}, "LoRA: rank is '8'; wanted int"),
        ("t", "lora", {"rank": True}, "LoRA: rank is True; wanted int"),
        ("t", "lora", {"dropout": 2.0}, "LoRA: dropout is 2.0; it must be <= 0.95"),
        ("t", "mos", {"private": 3}, "MoS: private=3 is more than the whole budget=2"),
        (
            "t",
            "mos",
            {"shards": 5},
            "mos: model.layers.0.self_attn.q_proj: width 32 of A is not a multiple of shards=5",
        ),
        ("t", "lora", {"sites": "*.nowhere"}, r"the pattern '\*.nowhere' matches no site; the linear layers end in"),
        ("t", "lora", {"labels": 3}, "the model has no head site"),
        ("t", object(), {}, "neither a method's name nor a method's config"),
        ("t", cw.methods.LoRA(rank=2), {"alpha": 2.0}, "give the options"),
    ],
)
def test_add_fails_whole(host, name, method, options, message):
    before = snapshot(host)
    with pytest.raises(cw.CommonweightError, match=message):
        host.add(name, method, **options)
    assert snapshot(host) == before and list(host) == ["taken"]


def test_an_init_that_fails_halfway_leaves_nothing(host, monkeypatch):
    from commonweight.core import init

    before, calls = snapshot(host), []

    def fail(self, shape, rng, base):
        calls.append(1)
        if len(calls) == 5:
            raise MemoryError("no room")
        return torch.zeros(shape)

    monkeypatch.setattr(init.Constant, "__call__", fail)
    with pytest.raises(cw.CommonweightError, match="there is no room for them: lower rank=256"):
        host.add("t", "vera")
    assert snapshot(host) == before


def test_a_pattern_that_matches_no_site():
    with pytest.raises(cw.CommonweightError, match="matches no site"):
        cw.Host(make("llama")[0], sites="*.W_pack")


def test_expert_weights_are_named():
    model, _ = make("moe")
    with pytest.raises(cw.CommonweightError, match="experts: fused expert weights"):
        cw.Host(model, sites="*.experts")


def test_unknown_tenants(host):
    for act in (
        lambda: host["takn"],
        lambda: host.remove("takn"),
        lambda: host.merged("takn"),
        lambda: host.route("takn").__enter__(),
        lambda: host.route(["taken", "takn"]).__enter__(),
        lambda: host.save("takn", "x.safetensors"),
    ):
        with pytest.raises(cw.CommonweightError, match=r"unknown tenant 'takn'; did you mean 'taken'\?"):
            act()
    with pytest.raises(cw.CommonweightError, match="no tenant has the number 7"), host.route(torch.tensor([7, 0])):
        pass
    with pytest.raises(cw.CommonweightError, match="LongTensor"), host.route(torch.tensor([0.5])):
        pass


def test_a_row_count_that_differs_from_the_route(host):
    _, batch = make("llama")
    with (
        host.route(["taken", None, "taken"]),
        pytest.raises(cw.CommonweightError, match="names 3 readers, the batch has 4 rows"),
    ):
        answer(host.model, batch)
    with host.route([None, None]), pytest.raises(cw.CommonweightError, match="names 2 readers, the batch has 4 rows"):
        answer(host.model, batch)
    with host.route([None] * 24), pytest.raises(cw.CommonweightError, match="names 24 readers, the batch has 4 rows"):
        answer(host.model, batch)
    with host.route(torch.zeros(1, 4, dtype=torch.long)), pytest.raises(cw.CommonweightError, match="names 1 x 4"):
        answer(host.model, batch)
    with pytest.raises(cw.CommonweightError, match=r"route\(5\): wanted"), host.route(5):
        pass


class TestFiles:
    @pytest.fixture
    def path(self, host, tmp_path):
        return host.save("taken", tmp_path / "t.safetensors")

    def refused(self, host, path, message, **options):
        before = snapshot(host)
        with pytest.raises(cw.CommonweightError, match=message) as e:
            host.load("new", path, **options)
        assert str(path.name) in str(e.value)
        assert snapshot(host)["pools"] == before["pools"] and "new" not in host

    def rewrite(self, path, change=None, tensors=None):
        with open(path, "rb") as f:
            (n,) = struct.unpack("<Q", f.read(8))
            meta = json.loads(json.loads(f.read(n))["__metadata__"]["commonweight"])
        if change:
            change(meta)
        save_file(tensors or load_file(path), path, {"commonweight": json.dumps(meta)})

    def test_missing(self, host, tmp_path):
        self.refused(host, tmp_path / "none.safetensors", "no such file")

    @pytest.mark.parametrize("keep", [0, 4, 40, -1])
    def test_truncated(self, host, path, keep):
        data = path.read_bytes()
        path.write_bytes(data[:keep])
        self.refused(host, path, "not a whole safetensors file|it is empty")

    def test_a_pickle_is_never_opened(self, host, tmp_path):
        torch.save({"x": torch.ones(1)}, tmp_path / "t.pt")
        self.refused(host, tmp_path / "t.pt", "a checkpoint of torch.save; a pickle can run any code")

    def test_not_ours(self, host, tmp_path):
        save_file({"x": torch.ones(1)}, tmp_path / "t.safetensors")
        self.refused(host, tmp_path / "t.safetensors", "not a commonweight tenant")

    def test_newer_format(self, host, path):
        self.rewrite(path, lambda m: m.update(format=99))
        self.refused(host, path, "format 99; this version reads up to 2: upgrade")

    def test_unknown_method(self, host, path):
        self.rewrite(path, lambda m: m.update(method="lorx"))
        with pytest.raises(cw.CommonweightError, match="unknown method 'lorx'"):
            host.load("new", path)

    def test_damaged_header(self, host, path):
        self.rewrite(path, lambda m: m.pop("sites"))
        self.refused(host, path, "its header is damaged")

    @pytest.mark.parametrize(
        ("key", "value"),
        [("method", []), ("method", {}), ("config", None), ("config", [1]), ("seed", [1]), ("seed", -1), ("seed", True),
         ("sites", []), ("sites", {"a": 1}), ("sites", {"a": [32, 32]}), ("sites", {"a": [32, 32, 5]}),
         ("sites", {"a.{}": [32, 32, "x-y"]}), ("sites", {"a.{}": [32, 32, "5-2"]}), ("sites", {"a": ["32", 32, ""]}),
         ("sites", {"a.{}": [32, 32, "0-99999999999"]}), ("sites", {"a.{}": [32, 32, "0-9,0-9"]}), ("base", None),
         ("plan", 3), ("labels", 3), ("labels", ["a", 1]), ("labels", ["a", "a"]), ("labels", []), ("metrics", 1),
         ("format", 0), ("format", -3), ("format", True), ("format", "1"), ("version", 2)],
    )  # fmt: skip
    def test_fields_of_another_type(self, host, path, key, value):
        self.rewrite(path, lambda m: m.update({key: value}))
        self.refused(host, path, "its header is damaged")

    @pytest.mark.parametrize("config", [{"rnak": 3}, {"rank": "3"}, {"rank": -1}, {"ranks": [3]}])
    def test_options_of_another_kind(self, host, path, config):
        self.rewrite(path, lambda m: m.update(config=config))
        self.refused(host, path, "LoRA")

    @pytest.mark.parametrize("text", ["[]", "3", "null", "[" * 100_000, "{", '{"format": 1}'])
    def test_headers_of_another_shape(self, host, path, text):
        save_file(load_file(path), path, {"commonweight": text})
        self.refused(host, path, "its header is damaged")

    def test_every_byte_of_the_header_may_have_a_flipped_bit(self, tmp_path):
        host = cw.Host(make("mlp")[0])
        tenant = stir(host.add("t", "lora", rank=1))
        path = host.save("t", tmp_path / "t.safetensors")
        whole = path.read_bytes()
        end = 8 + int.from_bytes(whole[:8], "little")
        for byte in range(end):
            for bit in {(byte * 5 + byte // 8) % 8, (byte * 3 + 1) % 8}:
                data = bytearray(whole)
                data[byte] ^= 1 << bit
                path.write_bytes(data)
                try:
                    found = host.load("new", path)
                except cw.CommonweightError as e:
                    assert path.name in str(e), (byte, bit)
                    continue
                assert found.plan == tenant.plan and found.config == tenant.config, (byte, bit)
                assert all(torch.equal(t, found.pools[n]) for n, t in tenant.pools.items()), (byte, bit)
                host.remove("new")
        assert list(host) == ["t"]

    def test_nan(self, host, path):
        tensors = load_file(path)
        next(iter(tensors.values())).view(-1)[3] = float("nan")
        self.rewrite(path, tensors=tensors)
        self.refused(host, path, "holds NaN or infinity")

    def test_a_missing_and_an_extra_pool(self, host, path):
        tensors = load_file(path)
        key = next(iter(tensors))
        tensors["other"] = tensors.pop(key)
        self.rewrite(path, tensors=tensors)
        self.refused(host, path, "missing pools .* unknown pools")

    def test_another_shape(self, host, path):
        tensors = load_file(path)
        key = next(iter(tensors))
        tensors[key] = torch.zeros(3, 3)
        self.rewrite(path, tensors=tensors)
        self.refused(host, path, r"is \(3, 3\) torch.float32, wanted")

    def test_another_plan(self, host, path):
        self.rewrite(path, lambda m: m.update(plan="0" * 16))
        self.refused(host, path, "reads its pools in another way")

    def test_another_base_by_name_shape_and_numbers(self, path):
        self.refused(cw.Host(make("bert")[0]), path, "made for another base: this one has no site")
        wide = cw.Host(make("llama")[0])
        wide.base.every = [s._replace(out=99) for s in wide.base.every]
        self.refused(wide, path, r"made for another base: .* there, \(99, .* here")
        other = cw.Host(make("llama", seed=1)[0])
        self.refused(other, path, "made for another base: same shapes, other weights")
        other.load("new", path, check_base=False)
        assert "new" in other

    def test_the_same_base_in_bfloat16_is_the_same_base(self, path):
        cw.Host(make("llama")[0].bfloat16()).load("new", path)

    def test_saving_nan_or_to_nowhere_writes_nothing(self, host, tmp_path):
        assert host.save("taken", tmp_path / "new" / "folders" / "t.safetensors").is_file()
        with pytest.raises(cw.CommonweightError, match="this folder cannot be made: "):
            host.save("taken", tmp_path / "new" / "folders" / "t.safetensors" / "t.safetensors")
        with pytest.raises(cw.CommonweightError, match="is a folder"):
            host.save("taken", tmp_path)
        next(host["taken"].parameters()).data[0] = float("inf")
        with pytest.raises(cw.CommonweightError, match="holds NaN or infinity; nothing was written"):
            host.save("taken", tmp_path / "t.safetensors")
        assert os.listdir(tmp_path) == ["new"]

    def test_a_failed_write_keeps_the_old_file(self, host, path, monkeypatch):
        old = path.read_bytes()

        def full(fd):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(cw.CommonweightError, match="No space left on device; nothing was written"):
            host.save("taken", path)
        assert path.read_bytes() == old and os.listdir(path.parent) == [path.name]

    def test_what_is_derived_from_the_base_is_checked(self, host, tmp_path, monkeypatch):
        if "lora-xs" not in cw.methods.available():
            return
        host.add("xs", "lora-xs", rank=2)
        path = host.save("xs", tmp_path / "xs.safetensors")
        host.load("again", path)
        host.remove("again"), host.remove("xs")
        from commonweight.host.tenant import Derive

        right = Derive.svd
        monkeypatch.setattr(Derive, "svd", lambda self, *at: tuple(-t for t in right(self, *at)))
        with pytest.raises(cw.CommonweightError, match="derives from the base differs here"):
            host.load("again", path)
        assert "again" not in host


def test_a_host_of_a_path():
    with pytest.raises(cw.CommonweightError, match=r"Host\('./model'\): wanted a model .* not a str; load it first"):
        cw.Host("./model")  # type: ignore[arg-type]
