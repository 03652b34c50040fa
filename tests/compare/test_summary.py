"""From runs to points: means, intervals, pairs and the front, on numbers that one can check by hand."""

import random
from dataclasses import replace

import pytest

from commonweight.compare import Comparison, Data, Fit, front, points
from commonweight.compare.driver import Config, Outcome
from commonweight.compare.summary import ALL
from commonweight.compare.table import heads, markdown, ordered, shown, terminal, to_json
from commonweight.report import spread


def outcome(scores, sizes, tasks=("a", "b"), task="classify", failed=(), grown=()):
    """scores[method][seed][task]; sizes[method] in bytes."""
    methods = tuple(scores)
    seeds = len(next(iter(scores.values())))
    c = Comparison("m", tuple(Data(t, f"{t}.tsv", f"{t}.tsv") for t in tasks), methods, ("4KB",), seeds, task=task)
    configs = tuple(Config(Fit(m, {"rank": i}, sizes[m], sizes[m] // 2, 9), ("4KB",)) for i, m in enumerate(methods))
    metric = "bits_per_byte" if task == "lm" else "accuracy"
    runs = []
    for i, m in enumerate(methods):
        for s in range(seeds):
            for j, t in enumerate(tasks):
                one = {"key": f"{i}{s}{j}", "job": {"seed": s}, "curve": []}
                if (m, s, t) in failed:
                    runs.append((i, t, {**one, "state": "failed", "error": "the loss is nan"}))
                    continue
                test = {metric: scores[m][s][j], "n": 100}
                runs.append((i, t, {**one, "state": "done", "test": test, "dev": {}, "head_bytes": 8,
                                    "bytes": sizes[m] + s * 5000 * (m in grown), "marginal_bytes": sizes[m] // 2,
                                    "peak_memory": 10**8 + i, "seconds_per_step": 0.01 * (s + 1)}))  # fmt: skip
    tunings = {(i, t): {"lr": 1e-3, "trials": []} for i in range(len(methods)) for t in tasks}
    return Outcome(c, configs, (("1KB", configs[0].fit),), (("road", "no"),), tuple(runs), tunings, 0)


SCORES = {"lora": [[0.8, 0.6], [0.9, 0.7]], "mos": [[0.7, 0.5], [0.7, 0.7]], "probe": [[0.5, 0.5], [0.5, 0.5]]}
SIZES = {"lora": 4000, "mos": 1000, "probe": 2000}


def test_bytes_are_those_that_runs_ended_with():
    lora, mos, _ = points(outcome(SCORES, SIZES, grown=("mos",)))
    assert (lora.bytes, mos.bytes, mos.marginal_bytes) == (4000, 3500, 500)
    o = outcome(SCORES, SIZES, grown=("mos",))
    assert "Planned within" not in markdown(o, points(o))
    o = o._replace(comparison=replace(o.comparison, budgets=("3KB",)))
    o = o._replace(configs=tuple(c._replace(budgets=("3KB",)) for c in o.configs))
    assert "- 3KB: `mos rank=1` ended with 3,500\n" in markdown(o, points(o))


def test_means_intervals_and_pairs():
    lora, mos, probe = points(outcome(SCORES, SIZES))
    assert lora.values["a"].mean == pytest.approx(0.85) and lora.values["a"].seeds == (0.8, 0.9)
    assert lora.values[ALL].seeds == pytest.approx((0.7, 0.8)) and lora.values[ALL].mean == pytest.approx(0.75)
    assert lora.values[ALL].half == pytest.approx(12.7062 * 0.05, rel=1e-4)  # t(1) times s / sqrt(2)
    assert lora.values[ALL].rows == pytest.approx(spread([(0.85, 100), (0.65, 100)]))
    assert lora.difference is None and mos.difference.seeds == pytest.approx((-0.1, -0.1))
    assert mos.difference.mean == pytest.approx(-0.1) and mos.difference.half == pytest.approx(0, abs=1e-9)
    assert [p.front for p in (lora, mos, probe)] == [True, True, False]
    assert lora.seconds_per_step == pytest.approx(0.01) and mos.peak_memory == 10**8 + 1


def test_less_is_better_for_language_models():
    found = points(outcome(SCORES, SIZES, task="lm"))
    assert [p.front for p in found] == [False, True, True] and found[0].values[ALL].rows is None
    assert [p.config.fit.method for p in ordered(found, "lm")] == ["probe", "mos", "lora"]


def test_a_config_with_a_failed_run_has_no_mean():
    o = outcome(SCORES, SIZES, failed={("lora", 1, "b")})
    lora, mos, _ = points(o)
    assert ALL not in lora.values and "a" in lora.values and not lora.front and mos.difference is None
    assert lora.failed == ("b seed 1: the loss is nan",) and "failed" in shown(lora, "classify")
    text = markdown(o, points(o))
    assert "Runs that gave no number" in text and "b seed 1: the loss is nan" in text
    assert ordered(points(o), "classify")[-1] is not None


def test_one_seed_has_no_interval_over_seeds():
    o = outcome({m: s[:1] for m, s in SCORES.items()}, SIZES)
    assert points(o)[0].values[ALL].half is None and "one seed: no interval" in markdown(o, points(o))


def test_the_front_by_its_definition():
    draw = random.Random(0)
    for more in (True, False):
        found = [(draw.randrange(20), draw.randrange(20)) for _ in range(60)] + [None]
        sign = 1 if more else -1
        on = front(found, more)
        for i, one in enumerate(found[:-1]):
            beaten = any(
                c <= one[0] and sign * q >= sign * one[1] and (c, q) != one for c, q in filter(None, found)
            )  # fmt: skip
            assert (i in on) != beaten
        assert len(found) - 1 not in on


def test_the_table_in_its_forms():
    o = outcome(SCORES, SIZES)
    found = points(o)
    assert heads(o)[4] == "accuracy %" and heads(o)[7] == "- lora"
    text = markdown(o, found)
    assert "| `lora rank=0` | 4,000 | 2,000 | 9 | 75.00 | 63.53 |" in text and "`mos rank=1`" in text
    assert "not tuned" in text and "1KB: `lora` starts at 4,000 bytes" in text
    assert "- `road`: no" in text
    told = to_json(o, found)
    assert told["points"][1]["difference"]["mean"] == pytest.approx(-0.1) and told["metric"] == "accuracy"


@pytest.mark.parametrize("width", [60, 90, 200])
def test_a_narrow_terminal_loses_columns_not_words(width):
    from rich.console import Console

    o = outcome(SCORES, SIZES)
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(terminal(o, points(o), width))
        text = console.export_text()
    assert all(len(line) <= width for line in text.splitlines()) and "lora rank=0" in text and "75.00" in text
    assert ("memory" in text) == (width == 200)
