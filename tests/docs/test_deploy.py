"""What `deploy/` starts, and every command that a page or a help text shows, is what the command line takes."""

from __future__ import annotations

import configparser
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from commonweight.cli import app
from commonweight.serve.http.door import OPEN
from commonweight.serve.http.settings import guarded
from tests.docs import examples

DEPLOY = examples.ROOT / "deploy"
COMMAND: Any = typer.main.get_command(app)
# text blocks that no test runs; those of other kinds are run
SHOWN = sorted([examples.ROOT / "README.md", *(examples.ROOT / "docs").glob("*.md")])


def parsed(words: list[str]) -> dict[str, Any]:
    """The values of a command's options, as it would get them. Raises: typer's error for what it does not take."""
    command = COMMAND
    while hasattr(command, "commands"):
        command, words = command.commands[words[0]], words[1:]
    with command.make_context("commonweight", list(words)) as context:
        return context.params


def called(line: str) -> list[str]:
    """The arguments of commonweight in a line of a shell, without what is directed elsewhere."""
    words = shlex.split(line, comments=True)
    at = next(i for i, w in enumerate(words) if Path(w).name == "commonweight")
    rest = words[at + 1 :]
    return rest[: next((i for i, w in enumerate(rest) if w in ("<", ">", "|", "&&", "&", "2>")), len(rest))]


def shell(text: str) -> Iterator[str]:
    for line in re.sub(r"\\\n *", " ", text).splitlines():
        if re.match(r"\$ (.*\| )?commonweight ", line):
            yield line.removeprefix("$ ")


@pytest.fixture(scope="module")
def service() -> dict[str, Any]:
    return yaml.safe_load((DEPLOY / "compose.yaml").read_text())["services"]["commonweight"]


@pytest.fixture(scope="module")
def unit() -> configparser.ConfigParser:
    found = configparser.ConfigParser(interpolation=None)
    found.optionxform = str  # type: ignore[assignment,method-assign]
    found.read(DEPLOY / "commonweight.service")
    return found


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_compose(service):
    program, flag, script = shlex.split(service["command"])
    assert (program, flag) == ("sh", "-c")
    install, start = script.split(" && ")
    extra = re.search(r"commonweight\[(\w+)\]", install)
    assert (
        extra
        and extra[1]
        in tomllib.loads((examples.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    assert start.startswith("exec ")  # else the shell would get the signal that ends it
    told = parsed(called(start))
    guarded(told["host"], told["api_keys"], told["insecure"])
    inside = [v.split(":")[1] for v in service["volumes"]]
    for path in (told["model"], told["store"], told["api_keys"]):
        assert any(Path(path).is_relative_to(p) for p in inside), path
    writable = [v.split(":")[1] for v in service["volumes"] if not v.endswith(":ro")]
    assert [str(told["store"])] == writable
    assert [p.rsplit(":", 1)[1] for p in service["ports"]] == [str(told["port"])]
    assert seconds(service["stop_grace_period"]) > told["drain"] + 5
    url = re.search(r"http://[^/]*:(\d+)(/\w+)", " ".join(service["healthcheck"]["test"]))
    assert url and int(url[1]) == told["port"] and url[2] in OPEN  # it has no key


def test_the_unit_of_systemd(unit):
    part = unit["Service"]
    told = parsed(called(part["ExecStart"]))
    guarded(told["host"], told["api_keys"], told["insecure"])
    assert str(told["store"]) in part["ReadWritePaths"].split()  # all else may be read alone
    assert seconds(part["TimeoutStopSec"]) > told["drain"] + 5
    assert part["ProtectSystem"] == "strict" and part["User"] and unit["Install"]["WantedBy"]


@pytest.mark.parametrize("page", [p.name for p in SHOWN])
def test_commands_of_a_page(page):
    path = next(p for p in SHOWN if p.name == page)
    for block in examples.blocks(path):
        for line in shell(block.text):
            parsed(called(line))


@pytest.mark.parametrize("name", sorted(COMMAND.commands))
def test_commands_of_a_help_text(name):
    lines = [x.strip() for x in (COMMAND.commands[name].epilog or "").splitlines()]
    found = [x for x in lines if re.match(r"(.*\| )?commonweight ", x)]
    assert found
    for line in found:
        parsed(called(line))


def test_a_flag_that_is_not_there_is_seen():
    with pytest.raises(Exception, match="No such option: --no-such-flag"):
        parsed(["serve", "model", "--no-such-flag"])


OTHERS = {"from-mergekit.md", "from-vllm.md", "exchange-networks.md", "LOG.md"}  # name flags of other tools


def flags(command: Any) -> set[str]:
    mine = {o for p in command.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}
    return mine.union(*(flags(c) for c in getattr(command, "commands", {}).values()))


@pytest.mark.parametrize("page", [p for p in SHOWN if p.name not in OTHERS], ids=lambda p: p.name)
def test_every_flag_that_a_text_names_is_there(page):
    named = set(re.findall(r"`(--[a-z][a-z0-9-]+)", page.read_text(encoding="utf-8")))
    assert not named - flags(COMMAND)
