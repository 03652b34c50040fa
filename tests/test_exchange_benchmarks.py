"""What the benchmarks of exchange say of runs: accounts of clients that were lost, and the row of bytes."""

import pytest
from gen_exchange import figures

from benchmarks.exchange import proof
from benchmarks.exchange.killed import accounts


def a_run():
    curve = [
        {"round": 0, "clients": 3, "replies": 3, "refused": {}, "up": 30},
        {"round": 1, "clients": 3, "replies": 1, "refused": {"vanished": 1, "late": 1}, "up": 10},
    ]
    seats = {"0": {"rounds": 2, "up": 20}, "1": {"rounds": 1, "up": 10}, "2": {"rounds": 1, "up": 10}}
    return {"curve": curve, "clients": seats}


def test_every_loss_is_counted():
    assert accounts(a_run(), 2) == {"replies": 4, "lost": {"vanished": 1, "late": 1}}
    for spoil, what in (
        (lambda r: r["curve"].pop(), "a round is missing"),
        (lambda r: r["curve"][1]["refused"].pop("late"), "round 1: a client is not counted"),
        (lambda r: r["clients"]["0"].update(rounds=3), "an answer was lost"),
        (lambda r: r["clients"]["2"].update(up=0), "bytes were lost"),
    ):
        run = a_run()
        spoil(run)
        with pytest.raises(AssertionError, match=what):
            accounts(run, 2)


def test_the_row_of_bytes(monkeypatch):
    """Of the runs that a side and LoRA both have: the fewest bytes within a point, else the fewest of all."""
    monkeypatch.setattr(proof, "FIRST", 4)
    sides = list(proof.SIDES)[:4]
    runs = {
        f"{side} | {task} | 0": {"accuracy": 90.0 - k * 0.6, "up": 1000 // (k + 1), "down": 1000 // (k + 1)}
        for task in ("trec", "cr")
        for k, side in enumerate(sides)
    } | {f"{sides[0]} | mr | 0": {"accuracy": 50.0, "up": 1, "down": 1}}
    monkeypatch.setattr(proof, "kept", lambda: {"runs": runs})
    (row,) = proof.bytes_row()
    assert row["ratio"] == 0.5 and f"2 of 15 runs (task, seed): {sides[1]} (0.60 points behind)" in row["what"]
    assert row["behind"][sides[2]] == 1.2
    monkeypatch.setattr(proof, "kept", lambda: {"runs": {}})
    assert proof.bytes_row() == []


def test_the_page_says_whether_a_target_is_met():
    """A ratio that is small enough at too low an accuracy is no success; of the killed every client is counted."""
    row = {"kind": "bytes", "unit": "of its bytes", "ratio": 0.004, "target": 0.005, "spread": [0.002, 0.008]}
    row["bytes"] = {"a": 1000, "b": 4}
    assert figures({**row, "within": True}) == (
        "1/250",
        "1/125 to 1/500",
        "1,000 bytes / 4 bytes",
        "at most 1/200",
        "yes",
    )
    assert figures({**row, "within": False})[-1] == "no"
    killed = {"kind": "killed", "rounds": 3, "clients": 2, "kills": 2, "replies": 4, "seconds": 9}
    assert [figures({**killed, "lost": {"vanished": n}})[-1] for n in (1, 2)] == ["no", "yes"]
