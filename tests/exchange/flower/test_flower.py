"""A run that Flower carries is a simulated run, to the bit; what goes wrong is counted by name."""

import copy
import dataclasses
import json
import math

import pytest
import torch

pytest.importorskip("flwr")

from flwr.app import Array, ArrayRecord, Error, Message, RecordDict

from commonweight.core import CommonweightError
from commonweight.exchange import methods, simulate
from commonweight.exchange.flower import app, client, serve
from commonweight.exchange.flower.records import KIND, data_of, packed
from commonweight.exchange.message import Refused
from tests.adapt import tiny
from tests.exchange import small
from tests.exchange.flower.grid import Here, config_of, other

RECIPE = {"clients": 3, "rounds": 3, "batch_size": 4, "lr": 1e-2}
NODES = {100 + c: {"partition-id": c} for c in range(3)}


@pytest.fixture(autouse=True)
def fresh():
    """Each test opens its own base."""
    yield
    client._node.cache_clear()


def made(folder, model, method="fedavg", **more):
    rows = tiny.jsonl(folder / "rows.jsonl", tiny.rows(24))
    test = tiny.jsonl(folder / "test.jsonl", tiny.rows(8, 5))
    options = {"options": small.SMALL[method], "dtype": "float32", "wait": 0.0, **RECIPE, **more}
    return app(str(model), folder / "app", method=method, rows=str(rows), eval_file=str(test), **options)


def simulated(model, method="fedavg", **more):
    return simulate(
        small.prepared_host(model), tiny.rows(24), method=method, options=small.SMALL[method], mixed=1,
        eval_rows=tiny.rows(8, 5), **RECIPE, **more,
    )  # fmt: skip


def alike(run, other):
    """The same state, and the same curve but for the loss, which a client does not send, and the run's name."""
    assert small.same(run.state.tensors, other.state.tensors) and run.state.facts == other.state.facts
    without = [
        [{k: v for k, v in r.items() if k not in ("train_loss", "up", "down")} for r in x.curve] for x in (run, other)
    ]
    assert without[0] == without[1]


@pytest.mark.parametrize("method", small.METHODS)
def test_as_simulated_to_the_bit(bert, tmp_path, method):
    folder = made(tmp_path, bert, method, run="run")
    run = serve(Here(folder, NODES), config_of(folder))
    wanted = simulated(bert, method)
    alike(run, wanted)
    assert [(r["up"], r["down"]) for r in run.curve] == [(r["up"], r["down"]) for r in wanted.curve]
    assert (tmp_path / "app-run" / "run.json").is_file() and (tmp_path / "app-run" / "store").is_dir()


@pytest.mark.parametrize("method", ["fed-sb", "fedcac"])
def test_codecs_both_ways(bert, tmp_path, method):
    """What a codec lost is in the node's state."""
    more = {"codec": "int4", "codec_down": "int8", "codec_feedback": "clients" if method == "fedcac" else "both"}
    folder = made(tmp_path, bert, method, run="run", sample=2, **more)
    run, wanted = serve(Here(folder, NODES), config_of(folder)), simulated(bert, method, sample=2, **more)
    alike(run, wanted)
    assert [(r["up"], r["down"]) for r in run.curve] == [(r["up"], r["down"]) for r in wanted.curve]
    with pytest.raises(CommonweightError, match="floats: codecs send bytes"):
        made(tmp_path, bert, "fed-sb", floats=True, overwrite=True, codec="int8")


def test_what_clients_can_holds_on_a_network(bert, tmp_path):
    """LEGEND's greedy depths are a function of the options that both sides have."""
    can = {"rank": 4, "least": 2, "seconds": [1, 5, 1]}
    folder = made(tmp_path, bert, "legend", run="run", options=can)
    run = serve(Here(folder, NODES), config_of(folder))
    wanted = simulate(
        small.prepared_host(bert), tiny.rows(24), method="legend", options=can, mixed=1, eval_rows=tiny.rows(8, 5),
        **RECIPE,
    )  # fmt: skip
    alike(run, wanted)
    assert run.seats[1].up < run.seats[0].up == run.seats[2].up


def test_private_pools_and_samples_too(bert, tmp_path):
    more = {"private": "*head*", "sample": 2}
    folder = made(tmp_path, bert, **more)
    alike(serve(Here(folder, NODES), config_of(folder)), simulated(bert, **more))


@pytest.mark.parametrize("memory", [False, True], ids=["contexts", "folder"])
def test_a_server_that_was_killed_goes_on(bert, tmp_path, memory):
    """In the middle of a round; the nodes live on, or were started anew and have a folder of their own."""
    nodes = {n: {**c, **({"state": str(tmp_path / "memory")} if memory else {})} for n, c in NODES.items()}
    folder = made(tmp_path, bert, private="*head*")
    grid = Here(folder, nodes)

    def killed(message, reply):
        if message.metadata.group_id == "1" and message.metadata.dst_node_id == 102:
            raise KeyboardInterrupt
        return [reply]

    grid.spoil = killed
    with pytest.raises(KeyboardInterrupt):
        serve(grid, config_of(folder))
    again = Here(folder, nodes)
    if not memory:
        again.contexts = grid.contexts
    client._node.cache_clear()
    run = serve(again, config_of(folder))
    alike(run, simulated(bert, private="*head*"))


def test_a_node_s_own_file(bert, tmp_path):
    folder = made(tmp_path, bert)
    own = tiny.jsonl(tmp_path / "own.jsonl", tiny.rows(5, 9))
    grid = Here(folder, {7: {"client": 0, "rows": str(own)}, 8: {"client": 1}, 9: {"client": 2}})
    run = serve(grid, config_of(folder))
    assert [run.seats[c].rows for c in range(3)] == [5, 8, 8]


def nothing(reply):
    return []


def twice(reply):
    return [reply, reply]


def cut(reply):
    return [with_data(reply, data_of(reply.content)[:-9])]


def long(reply):
    return [with_data(reply, data_of(reply.content) + bytes(10**5))]


def numbers(reply):
    """As Flower's own averaging would take it: an array of another name."""
    return [other(reply, message=ArrayRecord({"w": Array(torch.zeros(3).numpy())}))]


def no_array(reply):
    """Flower's own averaging would count it as zeros."""
    return [other(reply)]


def nan(reply):
    data = bytearray(data_of(reply.content))
    data[-4:] = b"\x00\x00\xc0\x7f"
    return [with_data(reply, bytes(data))]


def with_data(reply, data):
    return other(reply, message=packed(data)["message"])


FAULTS = {
    nothing: {"late": 1}, twice: {"answered twice": 1}, cut: {"not whole": 1}, long: {"too long": 1},
    numbers: {"wrong shape": 1}, no_array: {"wrong shape": 1}, nan: {"not finite": 1},
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_what_is_wrong_is_counted_and_the_round_goes_on(bert, tmp_path, fault):
    folder = made(tmp_path, bert, rounds=1)

    def spoil(message, reply):
        bad = message.metadata.message_type == "train" and message.metadata.dst_node_id == 101
        return fault(reply) if bad else [reply]

    run = serve(Here(folder, NODES, spoil), config_of(folder))
    assert run.curve[0]["refused"] == FAULTS[fault]
    assert run.curve[0]["replies"] == (3 if fault is twice else 2)


def test_a_client_that_crashes_has_vanished(bert, tmp_path):
    folder = made(tmp_path, bert, rounds=2)
    grid = Here(folder, NODES)

    def spoil(message, reply):
        if message.metadata.group_id == "0" and message.metadata.dst_node_id == 100:
            del grid.contexts[100]
            metadata = copy.copy(reply.metadata)
            metadata.__dict__["_src_node_id"] = 1  # as SuperLink answers for a node that is gone
            return [Message(Error(3, "gone"), metadata=metadata)]
        return [reply]

    grid.spoil = spoil
    run = serve(grid, config_of(folder))
    assert [r["refused"] for r in run.curve] == [{"vanished": 1}, {"vanished": 1}]
    assert [r["replies"] for r in run.curve] == [2, 2]


def test_nodes_that_do_not_belong_are_not_asked(bert, tmp_path):
    folder = made(tmp_path, bert, minimum=3)
    wrong = {100: {"partition-id": 0}, 101: {"partition-id": 0}, 102: {"partition-id": 9}, 103: {}}
    with pytest.raises(CommonweightError) as e:
        serve(Here(folder, wrong), config_of(folder))
    text = str(e.value)
    assert "1 clients came in 0 s, and a round needs 3" in text
    assert (
        "which is another node" in text and "the app has clients 0 to 2" in text and "--node-config 'client=0'" in text
    )


def test_another_base_is_told(bert, tmp_path, monkeypatch):
    folder = made(tmp_path, bert, minimum=3)
    grid = Here(folder, NODES)
    opened = client.opened

    def changed(config):
        p, config = opened(config)
        return dataclasses.replace(p, setting=dataclasses.replace(p.setting, base="another")), config

    monkeypatch.setattr(client, "opened", changed)
    with pytest.raises(CommonweightError, match="other base: 'another'; this run has"):
        serve(grid, config_of(folder))


def test_an_array_is_ours_alone():
    assert packed(b"abc")["message"]["message"].stype == KIND
    with pytest.raises(Refused, match="wrong shape"):
        data_of(RecordDict({"message": ArrayRecord({"a": Array(torch.zeros(1).numpy())})}))


def test_the_app_is_short_and_whole(bert, tmp_path):
    folder = made(tmp_path, bert, "fed-sb")
    assert sorted(p.name for p in folder.iterdir()) == ["client_app.py", "pyproject.toml", "server_app.py"]
    config = config_of(folder)
    assert json.loads(config["labels"]) and json.loads(config["options"]) == small.SMALL["fed-sb"]
    assert len((folder / "client_app.py").read_text().splitlines()) < 30


@pytest.mark.parametrize("method", [n for n in small.METHODS if not methods.get(n).noise])
def test_plain_arrays_are_the_same_run(bert, tmp_path, method):
    folder = made(tmp_path, bert, method, run="run", floats=True)
    alike(serve(Here(folder, NODES), config_of(folder)), simulated(bert, method))


def test_flower_s_mod_clips_and_adds_noise_to_plain_arrays(bert, tmp_path):
    """LocalDpMod of a clip so small that a client's change is nearly nothing, and of noise that is counted."""
    mods, moved = pytest.importorskip("flwr.clientapp.mod"), []
    for sensitivity in (0.0, 1e-3):
        at = tmp_path / str(sensitivity)
        at.mkdir()
        folder = made(at, bert, rounds=1, floats=True)
        grid = Here(folder, NODES)
        plain = grid.app

        def noised(message, context, plain=plain, sensitivity=sensitivity):
            if message.metadata.message_type == "query":
                return plain(message, context)
            return mods.LocalDpMod(1e-3, sensitivity, 1.0, 1e-5)(message, context, plain)

        grid.app = noised
        run = serve(grid, config_of(folder))
        assert run.curve[0]["replies"] == 3 and not run.curve[0]["refused"]
        start = small.start(small.prepared(bert))
        moved.append(sum(float((v - start[n]).square().sum()) for n, v in run.state.tensors.items()) ** 0.5)
    assert 0 < moved[0] <= 1.01e-3
    std = 1e-3 * (2 * math.log(1.25e5)) ** 0.5 / 3**0.5  # of a number of the mean of three, all but alike in rows
    assert moved[1] == pytest.approx(std * small.prepared(bert).setting.count ** 0.5, rel=0.1)


def test_plain_arrays_that_are_wrong_are_refused_by_name(bert, tmp_path):
    folder = made(tmp_path, bert, floats=True)

    def spoil(message, reply):
        if message.metadata.message_type == "query" or message.metadata.dst_node_id == 100:
            return [reply]
        record = dict(reply.content.array_records["message"])
        first = next(iter(record))
        if message.metadata.dst_node_id == 101:
            record[first] = Array(record[first].numpy().reshape(-1)[:1])
        else:
            del record[first]
        content = RecordDict({**reply.content, "message": ArrayRecord(record)})
        return [Message(content, metadata=reply.metadata)]

    run = serve(Here(folder, NODES, spoil), config_of(folder))
    assert all(r["refused"] == {"wrong shape": 2} and r["replies"] == 1 for r in run.curve)


def test_a_private_mean_on_a_network(bert, tmp_path):
    folder = made(tmp_path, bert, rounds=1, dp_clip=1e-3, dp_noise=0.0)
    run = serve(Here(folder, NODES), config_of(folder))
    start = small.start(small.prepared(bert))
    assert sum(float((v - start[n]).square().sum()) for n, v in run.state.tensors.items()) <= 1.01e-6


def test_a_mod_on_packed_messages_ends_in_an_error_and_not_in_a_run_without_it(bert, tmp_path):
    """Flower's mods clip and noise float arrays; a packed message has none."""
    mods = pytest.importorskip("flwr.clientapp.mod")
    folder = made(tmp_path, bert, rounds=1)
    grid = Here(folder, NODES)
    plain = grid.app

    def noised(message, context):
        if message.metadata.message_type == "query":
            return plain(message, context)
        return mods.LocalDpMod(1.0, 1.0, 1.0, 1e-5)(message, context, plain)

    grid.app = noised
    run = serve(grid, config_of(folder))
    assert run.curve[0]["refused"] == {"vanished": 3} and run.curve[0]["replies"] == 0
