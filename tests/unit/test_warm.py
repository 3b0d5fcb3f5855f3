"""What a server's workers know by heart is what cyclopts would say."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

LINES = [
    ["ps"],
    ["ps", "--format", "json"],
    ["run", "--", "true"],
    ["run", "--attach", "--", "sh", "-c", "a b", "--", "--help", "-x"],
    ["run", "-a", "-e", "A=1", "--env", "B=2", "--memory", "64m", "--cpus", "0.5", "--", "x"],
    ["run", "--timeout", "3", "--restart", "on-failure:2", "--", "-dash", ""],
    ["exec", "-i", "--user", "alice", "box", "--", "id", "-u"],
    ["exec", "box", "sh", "--", "id"],
    ["run", "true", "--", "false"],
    ["logs", "--follow", "a", "b"],
    ["stop", "--time", "3", "a"],
]
_CODE = """
import json, sys
from craterun.cli import app, warm
from cyclopts import App
warm.get_ready()
lines = json.loads(sys.argv[1])
results = []
for line in lines:
    warm.learn(line)
    call = warm.recall(line)
    known = call and [call.func.__qualname__, repr(call.args), repr(call.keywords)]
    App.assemble_argument_collection = warm._assemble
    function, bound, _ = app.app.parse_args(line)
    results.append((known, [function.__qualname__, repr(bound.args), repr(bound.kwargs)]))
print(json.dumps(results))
"""


def test_what_is_remembered_is_what_would_be_parsed() -> None:
    finished = subprocess.run(
        [sys.executable, "-c", _CODE, json.dumps(LINES)],
        capture_output=True,
        check=False,
        text=True,
    )
    assert finished.returncode == 0, finished.stderr
    for line, (known, parsed) in zip(LINES, json.loads(finished.stdout), strict=True):
        if line in (["exec", "box", "sh", "--", "id"], ["run", "true", "--", "false"]):
            assert known is None, line  # what is before -- is part of the command, too
        else:
            assert known == parsed, line


@pytest.mark.parametrize("line", [["run", "--help"], ["nonsense"], [], ["run", "--"], ["-V"]])
def test_what_is_for_cyclopts_alone_is_left_to_it(line: list[str]) -> None:
    code = (
        "import json, sys\nfrom craterun.cli import warm\nwarm.get_ready()\n"
        "line = json.loads(sys.argv[1])\nwarm.learn(line)\nassert warm.recall(line) is None"
    )
    command = [sys.executable, "-c", code, json.dumps(line)]
    finished = subprocess.run(command, capture_output=True, check=False, text=True)
    assert finished.returncode == 0, finished.stderr
