"""Processes of their own are as those of subprocess, with the libraries loaded and nothing of ours."""

import os
import signal
import time

import pytest

from tests import apart


def test_it_begins_as_a_new_python(tmp_path):
    code = (
        "import os, sys; print(sys.argv[1:], os.getcwd(), os.environ['A'], __name__, sys.path[0] == '');"
        "print([m for m in sys.modules if m.split('.')[0] in ('commonweight', 'tests', 'pytest')]);"
        "print('torch' in sys.modules, file=sys.stderr); sys.exit(3)"
    )
    done = apart.run("-c", code, "a b", tmp_path, env={"A": "1"}, cwd=tmp_path)
    assert done.returncode == 3 and done.stderr == "True\n"
    assert done.stdout == f"['a b', '{tmp_path}'] {tmp_path} 1 __main__ True\n[]\n"


def test_an_error_and_a_warning_are_told(tmp_path):
    (tmp_path / "mine.py").write_text("import warnings\nwarnings.warn('so')\nassert __name__ != '__main__', 'wrong'\n")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for how in ((), ("-W", "ignore")):
        done = apart.run(*how, "-m", "mine", env=env, cwd=tmp_path)
        assert done.returncode == 1 and done.stderr.endswith("AssertionError: wrong\n")
        assert ("UserWarning: so" in done.stderr) == (not how)
    assert apart.run("-c", "import mine", env={"PYTHONPATH": str(tmp_path)}).returncode == 0


def test_killed():
    process = apart.Apart("-c", "import time; time.sleep(100)")
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    process.kill()  # nobody any more
    ended = apart.Apart("-c", "pass")
    while os.path.exists(f"/proc/{ended.pid}"):
        time.sleep(0.01)
    ended.kill()  # nor there
    slow = apart.Apart("-c", "import time; time.sleep(100)")
    with pytest.raises(TimeoutError):
        slow.wait(0.1)
    assert apart.run("-c", "import os; os.kill(os.getpid(), 15)").returncode == -signal.SIGTERM
