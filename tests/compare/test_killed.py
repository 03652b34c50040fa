"""A comparison that is killed loses only what was running: no finished run is done again."""

import json
import signal

from commonweight.compare import Cache
from tests import apart
from tests.compare import killed


def test_a_killed_comparison_goes_on(bert, files, tmp_path):
    done = apart.run("-m", "tests.compare.killed", tmp_path, bert, files / "one.train.tsv")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["codes"] == [signal.SIGKILL] * (len(killed.MOMENTS) - 1) + [0]
    kept = [line.split()[1] for line in told["log"] if line.startswith("kept")]
    begun = [line.split()[1] for line in told["log"] if line.startswith("begun")]
    assert told["log"][-1] == "ended 4"  # two methods, one task, two seeds; and two trials of each method
    assert len(kept) == len(set(kept)) == 8 == len(Cache(tmp_path / "cache"))
    assert len(begun) == 8 + 2, "those that died in training or before their record had its name, once more"
    for key in kept:
        after = told["log"].index(f"kept {key}")
        assert f"begun {key}" not in told["log"][after:]
