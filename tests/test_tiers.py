"""The second tier: what cgroup v2 decides, in a guest that has it.

The tests marked ``cgroup_v2`` run on this host, whatever its cgroup layout, and once more here, in
a user-mode Linux guest with a unified hierarchy and this host's files (see tests/uml).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys

import pytest

from tests.conftest import tier_not_run
from tests.uml import in_uml

_MINUTES = 30


@pytest.mark.skipif(in_uml(), reason="this is the guest")
@pytest.mark.slow
def test_the_cgroup_v2_tier_passes() -> None:
    if shutil.which("linux.uml") is None:
        tier_not_run("the cgroup v2 tier needs user-mode Linux: apt-get install user-mode-linux")
    guest = subprocess.run(
        [
            sys.executable, "-m", "tests.uml", "--timeout", str(_MINUTES * 60), "--",
            "python", "-m", "pytest", "-m", "cgroup_v2", "-q", "-p", "no:cacheprovider", "tests",
        ],
        capture_output=True,
        text=True,
        env={**os.environ, "CRATERUN_TESTS_SHARED": "0"},
        check=False,
    )  # fmt: skip
    report = f"{guest.stdout[-20000:]}\n{guest.stderr[-5000:]}"
    assert guest.returncode == 0, report
    passed = re.search(r"(\d+) passed", guest.stdout)
    assert passed is not None, report
    assert int(passed[1]) > 0, report
    assert "skipped" not in guest.stdout, report
