"""A script in the place of ``linux.uml``, to test the runner without a guest."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from . import stream

_FAKE = """#!{python}
import os, re, subprocess, sys, time
words = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
init = open(words["init"].strip('"')).read()
token = re.search(r"exit %d.n' (\\w+)", init)[1].encode()
line = int(words["ssl0"].rpartition(":")[2])
def out(data): os.write(line, data)
def end(code): out(b"\\0craterun-uml " + token + b" exit %d\\n" % code)
os.write(1, b"Linux version fake\\n")
{body}
"""
#: For a fake kernel's body: the guest has booted.
READY = f"os.write(1, {stream.READY!r})\n"
#: For a body: have two processes, tell their numbers, and hang.
HELPERS = """
helper = subprocess.Popen(["sleep", "1000"], pass_fds=(line,))
out(b"%d %d\\n" % (os.getpid(), helper.pid))
time.sleep(1000)
"""


def start_fake(directory: Path, body: str, *options: str) -> subprocess.Popen[bytes]:
    """Start the runner, with a kernel made of ``body`` in ``directory``."""
    kernel = directory / "linux.uml"
    kernel.write_text(_FAKE.format(python=sys.executable, body=body))
    kernel.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{directory}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(directory),
    }
    return subprocess.Popen(
        [sys.executable, "-m", "tests.uml", *options, "--", "true"],
        cwd=Path(__file__).parents[2],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def run_fake(directory: Path, body: str, *options: str) -> tuple[int, bytes, str]:
    """Run the runner so; return its exit code, its output and its messages."""
    with start_fake(directory, body, *options) as process:
        output, errors = process.communicate(timeout=60)
    assert [path.name for path in directory.iterdir()] == ["linux.uml"], "files were left"
    return process.returncode, output, errors.decode()


def is_alive(pid: int) -> bool:
    """Tell whether ``pid`` runs; a zombie that nobody reaps yet does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state not in "ZX"
